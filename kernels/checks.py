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
    _require(
        block is None or block in BLOCKS, f"Scale block {block} is not one that the kernels know; choose 64 or 128."
    )


def check_activation(x: Tensor) -> None:
    """Require a tensor ``[..., K]`` in one of `ACTIVATION_DTYPES`."""
    _require(
        x.ndim > 0 and x.dtype in ACTIVATION_DTYPES,
        f"Expected a bfloat16, float16 or float32 tensor, got {_describe(x)}.",
    )


def check_quantized(codes: Tensor, scale: Tensor, block: int | None) -> None:
    """Require int8 codes ``[..., K]`` and their scales per row or per ``1 x block`` group."""
    _require(codes.ndim > 0 and codes.dtype == torch.int8, f"Codes are int8 [..., K], got {_describe(codes)}.")
    count = 1 if block is None else count_groups(codes.shape[-1], block)
    _require_float32("Scales", scale, (*codes.shape[:-1], count))


def check_weight(w: Tensor) -> None:
    """Require a weight ``[N, K]`` in one of `ACTIVATION_DTYPES`."""
    check_activation(w)
    _require(w.ndim == 2, f"Weights are [N, K], got {_describe(w)}.")


def check_quantized_weight(codes: Tensor, scale: Tensor, block: int) -> None:
    """Require int8 codes ``[N, K]`` and one scale per ``block x block`` tile."""
    _require(codes.ndim == 2 and codes.dtype == torch.int8, f"Weight codes are int8 [N, K], got {_describe(codes)}.")
    tiles = (count_groups(codes.shape[0], block), count_groups(codes.shape[1], block))
    _require_float32("Weight scales", scale, tiles)


def check_product(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, block: int | None
) -> None:
    """Require operands of one INT8 product, as `ops.int8_gemm` and `ops.int8_addmm` take them."""
    check_block(block)
    _require(a.ndim == 2 and b.ndim == 2, f"A product takes matrices, got {_describe(a)} and {_describe(b)}.")
    check_quantized(a, a_scale, block)
    (m, k), n = a.shape, b.shape[0]
    _require(b.shape[1] == k, f"Operands [{m}, {k}] and {list(b.shape)} do not share their inner dimension.")
    if block is None:
        _require(k <= MAX_K, f"An inner dimension of {k} could overflow 32 bits; at most {MAX_K} is possible.")
        _require(b.dtype == torch.int8, f"Codes are int8 [N, K], got {_describe(b)}.")
        _require_float32("Weight scales", b_scale, (n, 1) if b_scale.ndim else ())
    else:
        check_quantized_weight(b, b_scale, block)
    _require(bias is None or bias.shape == (n,), f"A bias for {n} outputs is [{n}].")


def check_rotation(x: Tensor, group: int) -> None:
    """Require a rotation group of `GROUPS` that divides K of an activation ``[..., K]``."""
    check_activation(x)
    _require(group in GROUPS, f"Rotation group {group} is not one that the kernels know; choose 16, 64 or 256.")
    _require(x.shape[-1] % group == 0, f"Rotation group {group} does not divide a row of {x.shape[-1]}.")


def check_gelu(approximate: str) -> None:
    """Require one of `GELU_APPROXIMATIONS`."""
    _require(
        approximate in GELU_APPROXIMATIONS, f"GELU's approximation {approximate!r} is unknown; choose none or tanh."
    )


def check_columns(block: ColumnBlock, matrix: Tensor, *others: Tensor) -> None:
    """Require a block of at most `MAX_COLUMNS` columns, its ``[B, B]`` matrix and ``[B, N]`` tensors."""
    shape = block.weight.shape
    _require(len(shape) == 2 and shape[0] <= MAX_COLUMNS, f"At most {MAX_COLUMNS} columns [B, N], got {list(shape)}.")
    for x in (block.weight, *others, *(block.limits or ())):
        _require_rows(x, tuple(shape))
    _require_float32("Scales", block.scale, tuple(shape))
    _require_float32("The factor or Hessian", matrix, (shape[0], shape[0]))


def check_group(weight: Tensor, targets: Tensor, factor: Tensor, pivots: Tensor, scales: Tensor) -> None:
    """Require a group of columns ``[B, N]``, its ``[B, B]`` factor, its pivots and candidate scales ``[C, N]``."""
    _require(weight.ndim == 2, f"A group of columns is [B, N], got {_describe(weight)}.")
    columns, rows = weight.shape
    for x in (weight, targets):
        _require_rows(x, (columns, rows))
    _require_float32("The factor", factor, (columns, columns))
    _require_float32("Pivots", pivots, (columns,))
    _require(scales.ndim == 2 and len(scales) > 0, f"Candidate scales are [C, N], got {_describe(scales)}.")
    _require_rows(scales, (len(scales), rows))


def _require_rows(x: Tensor, shape: tuple[int, ...]) -> None:
    fits = x.dtype == torch.float32 and x.shape == shape and (x.stride(1) == 1 or shape[1] < 2)
    _require(fits, f"Expected float32 {list(shape)} with contiguous rows, got {_describe(x)}.")


def _require_float32(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    fits = x.dtype == torch.float32 and x.shape == shape
    _require(fits, f"{name} must be float32 {list(shape)} here, got {_describe(x)}.")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise KernelError(message)


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
