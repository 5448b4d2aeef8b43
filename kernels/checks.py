"""Refuses operands that do not fit each other, before a kernel reads past their ends.

Every function raises KernelError with one sentence, or returns nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .eager.ldlq import ColumnBlock
from .eager.quantize import count_groups
from .errors import KernelError

BLOCKS = (64, 128)
GROUPS = (16, 64, 256)
GELU_APPROXIMATIONS = ("none", "tanh")
ACTIVATION_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

MAX_K = 131_071
"""Largest K whose products cannot overflow int32, even if every code is -128: K x 2^14 < 2^31."""

MAX_COLUMNS = 128
"""Most columns of a block that `ldlq` takes: a program holds the errors of all of them."""


def check_block(block: int | None) -> None:
    """Require a scale block of `BLOCKS`, or None for one scale per row."""
    if block is not None and block not in BLOCKS:
        raise KernelError(f"Scale block {block} is not one that the kernels know; choose 64 or 128.")


def check_activation(x: Tensor) -> None:
    """Require a tensor ``[..., K]`` in one of `ACTIVATION_DTYPES`."""
    if x.ndim == 0 or x.dtype not in ACTIVATION_DTYPES:
        raise KernelError(f"Expected a bfloat16, float16 or float32 tensor, got {_describe(x)}.")


def check_quantized(codes: Tensor, scale: Tensor, block: int | None) -> None:
    """Require int8 codes ``[..., K]`` and their scales per row or per ``1 x block`` group."""
    if codes.ndim == 0 or codes.dtype != torch.int8:
        raise KernelError(f"Codes are int8 [..., K], got {_describe(codes)}.")
    count = 1 if block is None else count_groups(codes.shape[-1], block)
    _require_float32("Scales", scale, (*codes.shape[:-1], count))


def check_weight(w: Tensor) -> None:
    """Require a weight ``[N, K]`` in one of `ACTIVATION_DTYPES`."""
    check_activation(w)
    if w.ndim != 2:
        raise KernelError(f"Weights are [N, K], got {_describe(w)}.")


def check_quantized_weight(codes: Tensor, scale: Tensor, block: int) -> None:
    """Require int8 codes ``[N, K]`` and one scale per ``block x block`` tile."""
    if codes.ndim != 2 or codes.dtype != torch.int8:
        raise KernelError(f"Weight codes are int8 [N, K], got {_describe(codes)}.")
    tiles = (count_groups(codes.shape[0], block), count_groups(codes.shape[1], block))
    _require_float32("Weight scales", scale, tiles)


def check_product(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, block: int | None
) -> None:
    """Require operands of one INT8 product, as `ops.int8_gemm` and `ops.int8_addmm` take them."""
    check_block(block)
    if a.ndim != 2 or b.ndim != 2:
        raise KernelError(f"A product takes matrices, got {_describe(a)} and {_describe(b)}.")
    check_quantized(a, a_scale, block)
    (m, k), n = a.shape, b.shape[0]
    if b.shape[1] != k:
        raise KernelError(f"Operands [{m}, {k}] and {list(b.shape)} do not share their inner dimension.")
    if block is not None:
        check_quantized_weight(b, b_scale, block)
    else:
        if k > MAX_K:
            raise KernelError(f"An inner dimension of {k} could overflow 32 bits; at most {MAX_K} is possible.")
        if b.dtype != torch.int8:
            raise KernelError(f"Codes are int8 [N, K], got {_describe(b)}.")
        _require_float32("Weight scales", b_scale, (n, 1) if b_scale.ndim else ())
    _check_bias(bias, n)


def check_rotation(x: Tensor, group: int) -> None:
    """Require a rotation group of `GROUPS` that divides K of an activation ``[..., K]``."""
    check_activation(x)
    if group not in GROUPS:
        raise KernelError(f"Rotation group {group} is not one that the kernels know; choose 16, 64 or 256.")
    if x.shape[-1] % group:
        raise KernelError(f"Rotation group {group} does not divide a row of {x.shape[-1]}.")


def check_gelu(approximate: str) -> None:
    """Require one of `GELU_APPROXIMATIONS`."""
    if approximate not in GELU_APPROXIMATIONS:
        raise KernelError(f"GELU's approximation {approximate!r} is unknown; choose none or tanh.")


def check_columns(block: ColumnBlock, matrix: Tensor, *others: Tensor) -> None:
    """Require a block of at most `MAX_COLUMNS` columns, its ``[B, B]`` matrix and ``[B, N]`` tensors."""
    shape = block.weight.shape
    if len(shape) != 2 or shape[0] > MAX_COLUMNS:
        raise KernelError(f"At most {MAX_COLUMNS} columns [B, N], got {list(shape)}.")
    for x in (block.weight, *others, *(block.limits or ())):
        _require_rows(x, tuple(shape))
    _require_float32("Scales", block.scale, tuple(shape))
    _require_float32("The factor or Hessian", matrix, (shape[0], shape[0]))


def check_group(weight: Tensor, targets: Tensor, factor: Tensor, pivots: Tensor, scales: Tensor) -> None:
    """Require a group of columns ``[B, N]``, its ``[B, B]`` factor, its pivots and candidate scales ``[C, N]``."""
    if weight.ndim != 2:
        raise KernelError(f"A group of columns is [B, N], got {_describe(weight)}.")
    columns, rows = weight.shape
    for x in (weight, targets):
        _require_rows(x, (columns, rows))
    _require_float32("The factor", factor, (columns, columns))
    _require_float32("Pivots", pivots, (columns,))
    if scales.ndim != 2 or len(scales) == 0:
        raise KernelError(f"Candidate scales are [C, N], got {_describe(scales)}.")
    _require_rows(scales, (len(scales), rows))


def check_linear(x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, block: int) -> None:
    """Require operands of one linear layer, as `ops.block_linear` takes them."""
    check_block(block)
    check_activation(x)
    check_quantized_weight(w_codes, w_scale, block)
    n, k = w_codes.shape
    if x.shape[-1] != k:
        raise KernelError(f"Operands {list(x.shape)} and [{n}, {k}] do not share their inner dimension.")
    _check_bias(bias, n)


def _check_bias(bias: Tensor | None, n: int) -> None:
    if bias is not None and bias.shape != (n,):
        raise KernelError(f"A bias for {n} outputs is [{n}].")


def _require_rows(x: Tensor, shape: tuple[int, ...]) -> None:
    if x.dtype != torch.float32 or x.shape != shape or (x.stride(1) != 1 and shape[1] > 1):
        raise KernelError(f"Expected float32 {list(shape)} with contiguous rows, got {_describe(x)}.")


def _require_float32(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.dtype != torch.float32 or x.shape != shape:
        raise KernelError(f"{name} must be float32 {list(shape)} here, got {_describe(x)}.")


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
