"""INT8 products ``a @ b.T`` with scales per row, or per ``1 x block`` of ``a`` and ``block x block`` of ``b``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .quantize import act_quant

EXACT_TERMS = 1024
"""Int8 products whose float32 sum is exact: 1024 x 128 x 128 = 2^24, and float32 represents every integer up to it."""


def gemm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, block: int | None, dtype: torch.dtype
) -> Tensor:
    """Multiply quantized matrices; scaled, summed and biased in float32.

    Args:
        a: Codes int8 ``[M, K]``.
        a_scale: Float32 ``[M, ceil(K / block)]``, or ``[M, 1]`` for block None.
        b: Codes int8 ``[N, K]``.
        b_scale: Float32 ``[ceil(N / block), ceil(K / block)]``; for block None ``[N, 1]`` or ``[]``.
        bias: ``[N]`` or None.
        block: Width of a scale block, or None for scales per row.
        dtype: Of the result.

    Returns:
        ``[M, N]``.
    """
    result = _scale_rows(a, a_scale, b, b_scale) if block is None else _sum_blocks(a, a_scale, b, b_scale, block)
    return (result if bias is None else result + bias.to(torch.float32)).to(dtype)


def gemm_quant(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, block: int | None
) -> tuple[Tensor, Tensor]:
    """Compute `gemm` in float32 and quantize it per row or per ``1 x block`` group.

    Returns:
        Codes int8 ``[M, N]`` and scales float32 ``[M, ceil(N / block)]``, or ``[M, 1]`` for block None.
    """
    return act_quant(gemm(a, a_scale, b, b_scale, bias, block, torch.float32), block)


def multiply_codes(a: Tensor, b: Tensor) -> Tensor:
    """Return the exact int32 ``a @ b.T``, ``[M, N]``, of int8 ``a [M, K]`` and ``b [N, K]``."""
    return _int_mm(a, b) if a.is_cuda else _float_mm(a, b)


def _scale_rows(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    return multiply_codes(a, b).to(torch.float32) * (a_scale.reshape(-1, 1) * b_scale.reshape(1, -1))


def _sum_blocks(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int) -> Tensor:
    total = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    for group, start in enumerate(range(0, a.shape[1], block)):
        columns = b_scale[:, group].repeat_interleave(block)[: b.shape[0]]
        part = multiply_codes(a[:, start : start + block], b[:, start : start + block])
        total += part.to(torch.float32) * (a_scale[:, group, None] * columns)
    return total


def _float_mm(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    for start in range(0, a.shape[1], EXACT_TERMS):
        part = (
            a[:, start : start + EXACT_TERMS].to(torch.float32) @ b[:, start : start + EXACT_TERMS].to(torch.float32).T
        )
        total += part.to(torch.int32)
    return total


def _int_mm(a: Tensor, b: Tensor) -> Tensor:
    """Multiply by cuBLAS, which requires more than 16 rows, and K and N in multiples of 8."""
    (m, k), n = a.shape, b.shape[0]
    filled = _pad(a, -k % 8, max(0, 32 - m))
    return torch._int_mm(filled, _pad(b, -k % 8, -n % 8).T)[:m, :n]


def _pad(x: Tensor, columns: int, rows: int) -> Tensor:
    """Append columns and rows of zeros; no copy if there are none to append."""
    return pad(x, (0, columns, 0, rows)) if columns or rows else x.contiguous()
