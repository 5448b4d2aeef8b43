"""Formats of quantized weights: the table that is written, the table that is read, markers, grids and scales."""

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
