"""What a stored weight is: the table of formats, and what its rows are made of."""

from .table import ALIASES, BLOCKWISE, FLOATS, FORMATS, Format, Shape, format_name, int8_blockwise, pack_notice

__all__ = [
    "ALIASES",
    "BLOCKWISE",
    "FLOATS",
    "FORMATS",
    "Format",
    "Shape",
    "format_name",
    "int8_blockwise",
    "pack_notice",
]
