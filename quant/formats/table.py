"""The formats that this pack writes: one table, and everything that differs between them is in its rows.

A `Format` knows what codes stand for, which weights share a scale, the tensors of a layer and the marker that makes
ComfyUI's loaders build the right layout from them (ComfyUI QUANTIZATION.md; `comfy_kitchen` layouts). `stored` has the
formats that are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import torch

from ..errors import RecipeError
from ..notices import Notice, notice
from . import nvfp4
from .base import Format
from .codebook import NORMAL
from .granularity import Granularity, PerBlock, PerRow, PerTensor
from .grids import E4M3, E5M2, INT8, Grid
from .group_search import NORMAL_METHODS, UNIFORM_METHODS, share_codebook
from .grouped import GroupedFormat
from .packing import E2M1_NIBBLES, NIBBLES, SIX_BITS
from .scaled import ScaledFormat

BLOCKWISE = "int8_blockwise"


def int8_blockwise(size: int = 128) -> ScaledFormat:
    """INT8 with a scale for each block of ``size x size`` weights; inputs are quantized in runs of ``size``.

    Weights that end within a block are read but not written: other programs do not load them.
    """
    return ScaledFormat(
        name=BLOCKWISE if size == 128 else f"{BLOCKWISE}_{size}",
        title=f"INT8, per block of {size} x {size} (ComfyUI loads it only with this pack)",
        comfyui_name=BLOCKWISE,
        grid=INT8,
        granularity=PerBlock(size, size),
        multiple=(size, size),
        inputs=PerBlock(1, size),
        group_size=size,
        stock=False,
    )


def _float8(name: str, title: str, grid: Grid, has_product: bool = True) -> ScaledFormat:
    # torch._scaled_mm wants both sides of the product to be multiples of 16.
    return ScaledFormat(
        name=name,
        title=title,
        comfyui_name=name,
        grid=grid,
        granularity=PerTensor(),
        multiple=(16, 16),
        static_input=has_product,
        obeys_full_precision=True,
        needs_full_precision=not has_product,
        inputs=PerTensor(),
    )


def _int8(name: str, title: str, granularity: Granularity, rotated: bool = False) -> ScaledFormat:
    # torch._int_mm wants multiples of 8 on CUDA.
    return ScaledFormat(
        name=name,
        title=title,
        comfyui_name="int8_tensorwise",
        grid=INT8,
        granularity=granularity,
        multiple=(8, 8),
        rotated=rotated,
    )


INT8_ROW = _int8("int8_row", "INT8, per row", PerRow())

FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        _float8("float8_e4m3fn", "FP8 E4M3, per tensor", E4M3),
        # torch._scaled_mm refuses E5M2 x E5M2 on CUDA (PyTorch 2.13), and comfy-kitchen does not catch that.
        _float8("float8_e5m2", "FP8 E5M2, per tensor", E5M2, has_product=False),
        _int8("int8_tensor", "INT8, per tensor", PerTensor()),
        INT8_ROW,
        _int8("int8_convrot", "INT8, per row, rotated", PerRow(), rotated=True),
        ScaledFormat(
            name="mxfp8",
            title="MXFP8",
            comfyui_name="mxfp8",
            grid=E4M3,
            granularity=PerBlock(1, 32),
            padded=(32, 32),
            power_of_two=True,
            obeys_full_precision=True,
            inputs=PerBlock(1, 32),
        ),
        int8_blockwise(),
        int8_blockwise(64),
        GroupedFormat(
            name="w6a8",
            title="6-bit weights, INT8 products, rotated",
            comfyui_name="w6a8_int8",
            table=tuple(float(code - 32) for code in range(64)),
            order=tuple(range(1, 64)),
            packing=SIX_BITS,
            find=UNIFORM_METHODS,
            multiple=(1, 32),
            rotated=True,
            needs_rotation=True,
            group_size=16,
            inputs=INT8_ROW,
            needs="ComfyUI of October 2026 or later, or this pack and comfy-kitchen 0.2.36",
        ),
        GroupedFormat(
            name="w4a8",
            title="4-bit weights, INT8 products, rotated",
            comfyui_name="asym_w4a8_int8",
            table=NORMAL,
            order=tuple(range(16)),
            packing=NIBBLES,
            codebooks=True,
            find=NORMAL_METHODS,
            share=share_codebook,
            multiple=(1, 16),
            rotated=True,
            needs_rotation=True,
            marks_rotation=False,
            group_size=16,
            inputs=INT8_ROW,
            needs="ComfyUI 0.31",
        ),
        nvfp4.Nvfp4Format(
            name="nvfp4",
            title="NVFP4",
            comfyui_name="nvfp4",
            table=nvfp4.TABLE,
            order=nvfp4.ORDER,
            integer=False,
            channel_per_row=False,
            packing=E2M1_NIBBLES,
            find=nvfp4.METHODS,
            share=nvfp4.find_channel,
            group_name="weight_scale",
            channel_name="weight_scale_2",
            swizzled=True,
            padded=(16, 16),
            static_input=True,
            measures_inputs=True,
            obeys_full_precision=True,
            needs="ComfyUI 0.27",
        ),
    )
}

FLOATS: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""Formats of tensors that stay in floating point."""

ALIASES: Mapping[str, str] = {
    "fp8": "float8_e4m3fn",
    "fp8_e4m3fn": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "int8": "int8_row",
    "int8_tensorwise": "int8_tensor",
    "int8_rotated": "int8_convrot",
    "convrot": "int8_convrot",
    "asym_w4a8_int8": "w4a8",
    "w6a8_int8": "w6a8",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
}


def format_name(name: str) -> str:
    """Return the full name of a format.

    Args:
        name: a name or an alias.

    Raises:
        RecipeError: there is no such format; names the closest one.
    """
    full = ALIASES.get(name, name)
    known = [*FORMATS, *FLOATS]
    if full not in known:
        close = get_close_matches(name, [*known, *ALIASES], n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise RecipeError(f"Unknown format '{name}'.{hint} Formats: {', '.join(known)}.")
    return full


def find_recipe_name(stored: str, *, rotated: bool, one_scale: bool, group_size: int | None) -> str:
    """Find the name that recipes have for the format of a stored layer.

    Args:
        stored: The marker's name, which ComfyUI has for INT8 with all kinds of scales, rotated or not.
        rotated: Whether the weight is rotated.
        one_scale: Whether all weights share a scale.
        group_size: The marker's.

    Returns:
        The name of the format that is most like it; ``stored`` if no recipe has such a format.
    """

    def is_like(fmt: Format) -> tuple[bool, ...]:
        per_tensor = isinstance(fmt, ScaledFormat) and isinstance(fmt.granularity, PerTensor)
        return fmt.group_size == group_size, fmt.rotated == rotated, per_tensor == one_scale

    named = [fmt for fmt in FORMATS.values() if fmt.comfyui_name == stored]
    return max(named, key=is_like).name if named else stored


def find_needs(names: Iterable[str | None]) -> dict[str, str]:
    """What files need to be loaded, by format; formats that ComfyUI 0.27 loads are left out.

    Args:
        names: of formats, as markers have them.
    """
    wanted = set(names)
    return {fmt.comfyui_name: fmt.needs for fmt in FORMATS.values() if fmt.needs and fmt.comfyui_name in wanted}


def needs_notices(formats: Iterable[Format]) -> list[Notice]:
    """For each format of which ComfyUI 0.27 does not load files, a notice that says what does."""
    return [notice("needs_version", format=fmt.name, needs=fmt.needs) for fmt in formats if fmt.needs]


def pack_notice(names: Iterable[str | None]) -> Notice | None:
    """A notice that names the formats that no ComfyUI loads alone; None if there is none.

    Args:
        names: of formats, as markers have them.
    """
    own = {fmt.comfyui_name for fmt in FORMATS.values() if not fmt.stock} & set(names)
    return notice("needs_pack", formats=sorted(own)) if own else None
