"""Formats of quantized weights: the table that is written, the table that is read, markers, grids and scales."""

from .base import Format, Layout, Scale, Shape
from .group_scales import GroupScales
from .grouped import GroupedFormat
from .scaled import ScaledFormat
from .table import (
    ALIASES,
    BLOCKWISE,
    FLOATS,
    FORMATS,
    find_needs,
    find_recipe_name,
    format_name,
    int8_blockwise,
    needs_notices,
    pack_notice,
)

__all__ = [
    "ALIASES",
    "BLOCKWISE",
    "FLOATS",
    "FORMATS",
    "Format",
    "GroupScales",
    "GroupedFormat",
    "Layout",
    "Scale",
    "ScaledFormat",
    "Shape",
    "find_needs",
    "find_recipe_name",
    "format_name",
    "int8_blockwise",
    "needs_notices",
    "pack_notice",
]
