"""Launches the kernels of `jit.quantize` and `jit.rotation`; same functions and results as `eager.quantize`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..eager.quantize import count_groups
from .device import OPTIONS, make_rows_contiguous, row_stride, use_device
from .jit.quantize import dequantize, quantize, quantize_weight
from .jit.rotation import rotate_quantize

ELEMENTS = 4096
"""Elements that one program takes of a row with several scale groups."""


@dataclass(frozen=True)
class Cut:
    """How a row is divided among programs."""

    count: int
    """Scale groups of the row."""

    groups: int
    """Scale groups of one program, a power of two."""

    block: int
    """Elements of a group, a power of two."""

    @property
    def programs(self) -> int:
        return -(-self.count // self.groups)

    @property
    def warps(self) -> int:
        return _count_warps(self.groups * self.block)


def act_quant(x: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    """See `eager.quantize.act_quant`."""
    return _quantize(x, None, block, gelu=False, tanh=False)


def int8_gelu(codes: Tensor, scale: Tensor, block: int | None, approximate: str) -> tuple[Tensor, Tensor]:
    """See `eager.quantize.int8_gelu`."""
    return _quantize(codes, scale.contiguous(), block, gelu=True, tanh=approximate == "tanh")


def act_dequant(codes: Tensor, scale: Tensor, block: int | None, dtype: torch.dtype) -> Tensor:
    """See `eager.quantize.act_dequant`."""
    return _dequantize(codes, scale, _cut_row(codes.shape[-1], block), 1, dtype)


def weight_dequant(codes: Tensor, scale: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    """See `eager.quantize.weight_dequant`."""
    return _dequantize(codes, scale, _cut_row(codes.shape[-1], block), block, dtype)


def weight_quant(w: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """See `eager.quantize.weight_quant`."""
    (n, k), w = w.shape, make_rows_contiguous(w)
    codes = torch.empty((n, k), dtype=torch.int8, device=w.device)
    scale = torch.empty((count_groups(n, block), count_groups(k, block)), dtype=torch.float32, device=w.device)
    with use_device(w):
        quantize_weight[tuple(scale.shape)](w, codes, scale, n, k, row_stride(w), BLOCK=block, num_warps=8, **OPTIONS)
    return codes, scale


def rotate_quant(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """See `eager.rotation.rotate_quant`."""
    rows = _as_rows(x)
    columns = x.shape[-1]
    count = _round_up_to_power_of_two(columns // group)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    steps = (group.bit_length() - 1) // 2
    with use_device(x):
        rotate_quantize[(rows.shape[0],)](
            rows, codes, scale, columns, row_stride(rows),
            GROUPS=count, GROUP=group, STEPS=steps, num_warps=_count_warps(count * group), **OPTIONS,
        )  # fmt: skip
    return codes, scale


def _quantize(x: Tensor, x_scale: Tensor | None, block: int | None, *, gelu: bool, tanh: bool) -> tuple[Tensor, Tensor]:
    rows = _as_rows(x)
    cut = _cut_row(x.shape[-1], block)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((*x.shape[:-1], cut.count), dtype=torch.float32, device=x.device)
    with use_device(x):
        quantize[(rows.shape[0], cut.programs)](
            rows, x_scale, codes, scale, rows.shape[1], cut.count, row_stride(rows),
            GROUPS=cut.groups, BLOCK=cut.block, GELU=gelu, TANH=tanh, num_warps=cut.warps, **OPTIONS,
        )  # fmt: skip
    return codes, scale


def _dequantize(codes: Tensor, scale: Tensor, cut: Cut, rows_per_scale: int, dtype: torch.dtype) -> Tensor:
    rows = _as_rows(codes)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    with use_device(codes):
        dequantize[(rows.shape[0], cut.programs)](
            rows, scale.contiguous(), out, rows.shape[1], cut.count, row_stride(rows),
            ROWS=rows_per_scale, GROUPS=cut.groups, BLOCK=cut.block, num_warps=cut.warps, **OPTIONS,
        )  # fmt: skip
    return out


def _cut_row(columns: int, block: int | None) -> Cut:
    if block is None:
        return Cut(1, 1, _round_up_to_power_of_two(columns))
    count = count_groups(columns, block)
    return Cut(count, min(_round_up_to_power_of_two(count), ELEMENTS // block), block)


def _as_rows(x: Tensor) -> Tensor:
    return make_rows_contiguous(x.reshape(-1, x.shape[-1]))


def _round_up_to_power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _count_warps(elements: int) -> int:
    """Give each thread 16 to 32 values, up to rows of 16,384."""
    return min(max(elements // 1024, 4), 16)
