"""The formats that this pack writes: one table, and everything that differs between them is in its rows.

A `Format` knows its grid, which weights share a scale, the tensors of a layer and the marker that makes ComfyUI's
loaders build the right layout from them (ComfyUI QUANTIZATION.md; `comfy_kitchen` layouts). `stored` has the formats
that are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from ..errors import RecipeError
from ..notices import Notice, notice
from . import mxfp8
from .granularity import Granularity, PerBlock, PerRow, PerTensor
from .grids import E4M3, E5M2, INT8, Grid, to_float32
from .marker import Marker

Shape = tuple[int, int]

BLOCKWISE = "int8_blockwise"
ROWS = PerRow()


@dataclass(frozen=True, kw_only=True)
class Format:
    """Storage of a weight ``[N, K]`` by this pack."""

    name: str
    """Name in a recipe."""
    title: str
    """Name in the user interface."""
    comfyui_name: str
    """Name in markers, a key of ComfyUI's ``QUANT_ALGOS``; shared by formats that differ in their scales only."""
    grid: Grid
    """Values that a code can stand for."""
    granularity: Granularity
    """Which weights share a scale."""
    multiple: Shape = (1, 1)
    """N and K must divide by these, as ComfyUI's matrix products ask."""
    padded: Shape = (1, 1)
    """N and K are padded with zeros up to multiples of these."""
    power_of_two: bool = False
    """Whether scales are exponents (E8M0, swizzled) instead of float32."""
    rotated: bool = False
    """Whether the weight is rotated in groups of inputs before rounding (see `rotation`)."""
    static_input: bool = False
    """Whether ComfyUI can quantize the layer's input with a measured ``input_scale``."""
    obeys_full_precision: bool = False
    """Whether every supported ComfyUI keeps the inputs in float if the marker asks for it (INT8: from 0.38 on only)."""
    needs_full_precision: bool = False
    """Whether every layer is marked to be multiplied in 16 bits, because CUDA has no product in this format."""
    inputs: Granularity = ROWS
    """Which of a layer's inputs ``[R, K]`` share a scale where ComfyUI rounds them to the same grid."""
    group_size: int | None = None
    """Side of the square blocks that share a scale, where the marker says it."""
    stock: bool = True
    """Whether ComfyUI loads it without any pack."""

    @property
    def bits(self) -> int:
        return 8 * self.grid.dtype.itemsize

    @property
    def supports_lookup(self) -> bool:
        """Whether ComfyUI can look up embedding rows in this format (block scales: no)."""
        return not isinstance(self.granularity, PerBlock)

    def takes(self, shape: Shape, lookup: bool = False) -> bool:
        """Whether a weight can be stored and run in this format.

        Args:
            shape: ``(N, K)``.
            lookup: the weight is an embedding.
        """
        divides = all(size % step == 0 for size, step in zip(shape, self.multiple, strict=True))
        return divides and (self.supports_lookup or not lookup)

    def padded_shape(self, shape: Shape) -> Shape:
        rows, columns = (-(-size // step) * step for size, step in zip(shape, self.padded, strict=True))
        return rows, columns

    def layout(self, shape: Shape) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of every tensor that `pack` returns for a weight ``[N, K]``, by name within the layer."""
        stored = self.padded_shape(shape)
        scales = self.granularity.scale_shape(stored)
        scale = (torch.uint8, mxfp8.swizzled_shape(scales)) if self.power_of_two else (torch.float32, scales)
        return {"weight": (self.grid.dtype, stored), "weight_scale": scale}

    def pack(self, codes: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """The tensors of a layer, as `layout` describes them.

        Args:
            codes: in the padded shape.
            scale: float32, in the granularity's shape.
        """
        stored = mxfp8.pack_scale(scale) if self.power_of_two else scale
        return {"weight": codes, "weight_scale": stored}

    def unpack_scale(self, stored: Tensor, shape: Shape) -> Tensor:
        """Decode scales.

        Args:
            stored: the tensor of a file.
            shape: of the codes.

        Returns:
            float32 in the granularity's shape.
        """
        if self.power_of_two:
            return mxfp8.unpack_scale(stored, self.granularity.scale_shape(shape))
        return stored.to(torch.float32)

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Multiply codes by their scales: float32 ``[N, K]``, still rotated if the format rotates."""
        return to_float32(codes) * self.granularity.expand(scale, (codes.shape[0], codes.shape[1]))

    def make_marker(self, shape: Shape, group: int | None, full_precision: bool) -> Marker:
        """The marker of a layer with a weight of this shape.

        Args:
            shape: of the float weight, ``(N, K)``.
            group: inputs per rotation group; None where the weight is not rotated.
            full_precision: ask ComfyUI to dequantize and multiply in 16 bits.
        """
        return Marker(
            format=self.comfyui_name,
            convrot=None if group is None else True,
            convrot_groupsize=group,
            group_size=self.group_size,
            full_precision_matrix_mult=full_precision or None,
            orig_shape=None if self.padded_shape(shape) == shape else shape,
        )


def int8_blockwise(size: int = 128) -> Format:
    """INT8 with a scale for each block of ``size x size`` weights; inputs are quantized in runs of ``size``.

    Weights that end within a block are read but not written: other programs do not load them.
    """
    return Format(
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


def _float8(name: str, title: str, grid: Grid, has_product: bool = True) -> Format:
    # torch._scaled_mm wants both sides of the product to be multiples of 16.
    return Format(
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


def _int8(name: str, title: str, granularity: Granularity, rotated: bool = False) -> Format:
    # torch._int_mm wants multiples of 8 on CUDA.
    return Format(
        name=name,
        title=title,
        comfyui_name="int8_tensorwise",
        grid=INT8,
        granularity=granularity,
        multiple=(8, 8),
        rotated=rotated,
    )


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        _float8("float8_e4m3fn", "FP8 E4M3, per tensor", E4M3),
        # torch._scaled_mm refuses E5M2 x E5M2 on CUDA (PyTorch 2.13), and comfy-kitchen does not catch that.
        _float8("float8_e5m2", "FP8 E5M2, per tensor", E5M2, has_product=False),
        _int8("int8_tensor", "INT8, per tensor", PerTensor()),
        _int8("int8_row", "INT8, per row", PerRow()),
        _int8("int8_convrot", "INT8, per row, rotated", PerRow(), rotated=True),
        Format(
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


def pack_notice(names: Iterable[str | None]) -> Notice | None:
    """A notice that names the formats that ComfyUI alone does not load; None if it loads all of them.

    Args:
        names: of formats, as markers have them.
    """
    own = {fmt.comfyui_name for fmt in FORMATS.values() if not fmt.stock} & set(names)
    return notice("needs_pack", formats=sorted(own)) if own else None
