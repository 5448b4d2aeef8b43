"""INT8 products ``a @ b.T`` with scales per row, or per 1 x block of ``a`` and block x block of ``b``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .quantize import act_quant

EXACT = 1024
"""Terms of a float32 sum of int8 products that is exact: 1024 x 128 x 128 = 2^24, up to which float32 has every
integer.
"""


def gemm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, block: int | None, dtype: torch.dtype
) -> Tensor:
    """``[M, N]`` in ``dtype`` of int8 ``a [M, K]`` and ``b [N, K]``, summed and scaled in float32.

    Block None: ``a_scale [M, 1]`` and ``b_scale [N, 1]`` or ``[]``; else ``a_scale [M, ceil(K / block)]`` and
    ``b_scale [ceil(N / block), ceil(K / block)]``. ``bias [N]`` is added before the conversion to ``dtype``.
    """
    scaled = _per_row(a, a_scale, b, b_scale) if block is None else _per_block(a, a_scale, b, b_scale, block)
    return (scaled if bias is None else scaled + bias.to(torch.float32)).to(dtype)


def gemm_quant(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, block: int | None
) -> tuple[Tensor, Tensor]:
    """The float32 `gemm`, quantized per row or per 1 x block group."""
    return act_quant(gemm(a, a_scale, b, b_scale, bias, block, torch.float32), block)


def int_product(a: Tensor, b: Tensor) -> Tensor:
    """Exact int32 ``a @ b.T`` of int8 ``a [M, K]`` and ``b [N, K]``."""
    return _int_mm(a, b) if a.is_cuda else _float_mm(a, b)


def _per_row(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    return int_product(a, b).to(torch.float32) * (a_scale.reshape(-1, 1) * b_scale.reshape(1, -1))


def _per_block(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int) -> Tensor:
    total = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    for group, start in enumerate(range(0, a.shape[1], block)):
        columns = b_scale[:, group].repeat_interleave(block)[: b.shape[0]]
        part = int_product(a[:, start : start + block], b[:, start : start + block])
        total += part.to(torch.float32) * (a_scale[:, group, None] * columns)
    return total


def _float_mm(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    for start in range(0, a.shape[1], EXACT):
        part = a[:, start : start + EXACT].to(torch.float32) @ b[:, start : start + EXACT].to(torch.float32).T
        total += part.to(torch.int32)
    return total


def _int_mm(a: Tensor, b: Tensor) -> Tensor:
    """By cuBLAS, which wants more than 16 rows, and K and N in multiples of 8."""
    (m, k), n = a.shape, b.shape[0]
    filled = _pad(a, -k % 8, max(0, 32 - m))
    return torch._int_mm(filled, _pad(b, -k % 8, -n % 8).T)[:m, :n]


def _pad(x: Tensor, columns: int, rows: int) -> Tensor:
    """Zeros at the ends; where none are wanted, not a copy."""
    return pad(x, (0, columns, 0, rows)) if columns or rows else x.contiguous()
