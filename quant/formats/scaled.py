"""Formats of one level of scales: a weight is its code times a scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import mxfp8
from .base import Format, Layout, Shape
from .granularity import Granularity, PerBlock, PerRow, PerTensor
from .grids import Grid, to_float32
from .scales import SCALE_METHODS, absmax

ROWS = PerRow()


@dataclass(frozen=True, kw_only=True)
class ScaledFormat(Format):
    """A code of one byte is a number of a grid, and all weights of a tensor, row or block share a scale."""

    grid: Grid
    """Values that a code can stand for."""
    granularity: Granularity
    """Which weights share a scale."""
    power_of_two: bool = False
    """Whether scales are exponents (E8M0, swizzled) instead of float32."""
    inputs: Granularity = ROWS
    """Which of a layer's inputs ``[R, K]`` share a scale where ComfyUI rounds them to the same grid."""
    scale_name: str = "weight_scale"
    """Name of the scales' tensor within the layer."""

    @property
    def code_dtype(self) -> torch.dtype:
        return self.grid.dtype

    @property
    def supports_lookup(self) -> bool:
        return not isinstance(self.granularity, PerBlock)

    @property
    def row_unit(self) -> int:
        return self.granularity.rows

    @property
    def scale_methods(self) -> tuple[str, ...]:
        return tuple(SCALE_METHODS)

    @property
    def input_maximum(self) -> float:
        return self.grid.maximum

    def layout(self, shape: Shape) -> Layout:
        stored = self.padded_shape(shape)
        scales = self.granularity.scale_shape(stored)
        scale = (torch.uint8, mxfp8.swizzled_shape(scales)) if self.power_of_two else (torch.float32, scales)
        return {"weight": (self.grid.dtype, stored), self.scale_name: scale}

    def find_scale(self, weight: Tensor, method: str) -> Tensor:
        return SCALE_METHODS[method](weight, self)

    def round(self, weight: Tensor, scale: Tensor) -> Tensor:
        return self.grid.encode(weight / self.granularity.expand(scale, (weight.shape[0], weight.shape[1])))

    def round_into(self, weight: Tensor, scale: Tensor, codes: Tensor, values: Tensor) -> None:
        """As `Format.round_into`, in the memory of ``values``."""
        wide = self.granularity.expand(scale, (weight.shape[0], weight.shape[1]))
        self.grid.encode_into(torch.div(weight, wide, out=values), codes)
        values.mul_(wide)

    def neighbours(self, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        wide = self.granularity.expand(scale, (weight.shape[0], weight.shape[1]))
        relative = weight / wide
        return self.grid.below(relative).mul_(wide), self.grid.above(relative).mul_(wide)

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        return to_float32(codes) * self.granularity.expand(scale, (codes.shape[0], codes.shape[1]))

    def round_inputs(self, rows: Tensor, input_scale: float | None = None) -> Tensor:
        """As `Format.round_inputs`; with one scale for all inputs and no ``input_scale``, ComfyUI takes 1."""
        rounding = replace(self, granularity=self.inputs)
        if isinstance(self.inputs, PerTensor):
            scale = rows.new_tensor(1.0 if input_scale is None else input_scale)
        else:
            scale = absmax(rows, rounding)
        return rounding.dequantize(rounding.round(rows, scale), scale)

    def pack(self, codes: Tensor, scale: Tensor) -> dict[str, Tensor]:
        stored = mxfp8.pack_scale(scale) if self.power_of_two else scale
        return {"weight": codes, self.scale_name: stored}

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As `Format.unpack`; values that were cast to the grid have no scale, which is 1 then."""
        codes = tensors["weight"]
        scale = self._unpack_scale(tensors.get(self.scale_name, torch.ones(())), (codes.shape[0], codes.shape[1]))
        return codes, scale.reshape(-1, 1) if scale.dim() == 1 else scale

    def _unpack_scale(self, stored: Tensor, shape: Shape) -> Tensor:
        if self.power_of_two:
            return mxfp8.unpack_scale(stored, self.granularity.scale_shape(shape))
        return stored.to(torch.float32)
