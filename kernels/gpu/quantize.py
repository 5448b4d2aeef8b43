"""Launches the kernels of `jit.quantize` and `jit.rotation`; the functions and results of `eager.quantize`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..eager.quantize import groups
from .device import guard, row_stride, with_contiguous_rows
from .jit.quantize import dequantize, quantize, quantize_weight
from .jit.rotation import rotate_quantize

ELEMENTS = 4096
"""Of a row that is cut into groups, what one program takes."""


@dataclass(frozen=True)
class Cut:
    """A row as programs see it: ``groups`` of ``block`` each, powers of two, of ``count`` scale groups in all."""

    count: int
    groups: int
    block: int

    @property
    def grid(self) -> int:
        return -(-self.count // self.groups)

    @property
    def warps(self) -> int:
        return _warps(self.groups * self.block)


def act_quant(x: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    return _quantize(x, None, block, gelu=False, tanh=False)


def int8_gelu(codes: Tensor, scale: Tensor, block: int | None, approximate: str) -> tuple[Tensor, Tensor]:
    return _quantize(codes, scale.contiguous(), block, gelu=True, tanh=approximate == "tanh")


def act_dequant(codes: Tensor, scale: Tensor, block: int | None, dtype: torch.dtype) -> Tensor:
    return _dequantize(codes, scale, _cut(codes.shape[-1], block), 1, dtype)


def weight_dequant(codes: Tensor, scale: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    return _dequantize(codes, scale, _cut(codes.shape[-1], block), block, dtype)


def weight_quant(w: Tensor, block: int) -> tuple[Tensor, Tensor]:
    (n, k), w = w.shape, with_contiguous_rows(w)
    codes = torch.empty((n, k), dtype=torch.int8, device=w.device)
    scale = torch.empty((groups(n, block), groups(k, block)), dtype=torch.float32, device=w.device)
    with guard(w):
        quantize_weight[tuple(scale.shape)](w, codes, scale, n, k, row_stride(w), BLOCK=block, num_warps=8)
    return codes, scale


def rotate_quant(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    rows = _rows(x)
    columns = x.shape[-1]
    count = _power_of_two(columns // group)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    steps = (group.bit_length() - 1) // 2
    with guard(x):
        rotate_quantize[(rows.shape[0],)](
            rows, codes, scale, columns, row_stride(rows),
            GROUPS=count, GROUP=group, STEPS=steps, num_warps=_warps(count * group),
        )  # fmt: skip
    return codes, scale


def _quantize(x: Tensor, x_scale: Tensor | None, block: int | None, *, gelu: bool, tanh: bool) -> tuple[Tensor, Tensor]:
    rows = _rows(x)
    cut = _cut(x.shape[-1], block)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((*x.shape[:-1], cut.count), dtype=torch.float32, device=x.device)
    with guard(x):
        quantize[(rows.shape[0], cut.grid)](
            rows, x_scale, codes, scale, rows.shape[1], cut.count, row_stride(rows),
            GROUPS=cut.groups, BLOCK=cut.block, GELU=gelu, TANH=tanh, num_warps=cut.warps,
        )  # fmt: skip
    return codes, scale


def _dequantize(codes: Tensor, scale: Tensor, cut: Cut, rows_per_scale: int, dtype: torch.dtype) -> Tensor:
    rows = _rows(codes)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    with guard(codes):
        dequantize[(rows.shape[0], cut.grid)](
            rows, scale.contiguous(), out, rows.shape[1], cut.count, row_stride(rows),
            ROWS=rows_per_scale, GROUPS=cut.groups, BLOCK=cut.block, num_warps=cut.warps,
        )  # fmt: skip
    return out


def _cut(columns: int, block: int | None) -> Cut:
    if block is None:
        return Cut(1, 1, _power_of_two(columns))
    count = groups(columns, block)
    return Cut(count, min(_power_of_two(count), ELEMENTS // block), block)


def _rows(x: Tensor) -> Tensor:
    return with_contiguous_rows(x.reshape(-1, x.shape[-1]))


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _warps(elements: int) -> int:
    """So that a thread has 16 to 32 values up to rows of 16,384."""
    return min(max(elements // 1024, 4), 16)
