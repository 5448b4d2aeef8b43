"""The custom ops behind `ops`: schema, shapes of the results, checks, and the selected implementation of each."""

from __future__ import annotations

import torch
from torch import Tensor

from . import eager
from .backend import runs_triton
from .checks import (
    check_activation,
    check_block,
    check_gelu,
    check_product,
    check_quantized,
    check_quantized_weight,
    check_rotation,
    check_weight,
)
from .eager.quantize import count_groups
from .library import register_op

Quantized = tuple[Tensor, Tensor]


def _like_quantized(x: Tensor, block: int | None, backend: str = "") -> Quantized:
    count = 1 if block is None else count_groups(x.shape[-1], block)
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], count), dtype=torch.float32)


def _like_weight(w: Tensor, block: int, backend: str) -> Quantized:
    scale = w.new_empty((count_groups(w.shape[0], block), count_groups(w.shape[1], block)), dtype=torch.float32)
    return w.new_empty(w.shape, dtype=torch.int8), scale


def _like_codes(codes: Tensor, scale: Tensor, block: int | None, dtype: torch.dtype, backend: str) -> Tensor:
    return codes.new_empty(codes.shape, dtype=dtype)


def _like_product(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None, out_dtype: torch.dtype, backend: str
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype)


def _like_quantized_product(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None, backend: str
) -> Quantized:
    return _like_quantized(a.new_empty((a.shape[0], b.shape[0])), block)


@register_op("(Tensor x, int? block, str backend) -> (Tensor, Tensor)", _like_quantized)
def act_quant(x: Tensor, block: int | None, backend: str) -> Quantized:
    check_block(block)
    check_activation(x)
    if x.numel() and runs_triton(backend, x):
        from . import gpu

        return gpu.act_quant(x, block)
    return eager.act_quant(x, block)


@register_op("(Tensor codes, Tensor scale, int? block, ScalarType dtype, str backend) -> Tensor", _like_codes)
def act_dequant(codes: Tensor, scale: Tensor, block: int | None, dtype: torch.dtype, backend: str) -> Tensor:
    check_block(block)
    check_quantized(codes, scale, block)
    if codes.numel() and runs_triton(backend, codes):
        from . import gpu

        return gpu.act_dequant(codes, scale, block, dtype)
    return eager.act_dequant(codes, scale, block, dtype)


@register_op("(Tensor w, int block, str backend) -> (Tensor, Tensor)", _like_weight)
def weight_quant(w: Tensor, block: int, backend: str) -> Quantized:
    check_block(block)
    check_weight(w)
    if w.numel() and runs_triton(backend, w):
        from . import gpu

        return gpu.weight_quant(w, block)
    return eager.weight_quant(w, block)


@register_op("(Tensor codes, Tensor scale, int block, ScalarType dtype, str backend) -> Tensor", _like_codes)
def weight_dequant(codes: Tensor, scale: Tensor, block: int, dtype: torch.dtype, backend: str) -> Tensor:
    check_block(block)
    check_quantized_weight(codes, scale, block)
    if codes.numel() and runs_triton(backend, codes):
        from . import gpu

        return gpu.weight_dequant(codes, scale, block, dtype)
    return eager.weight_dequant(codes, scale, block, dtype)


@register_op(
    "(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, int? block, ScalarType out_dtype, str backend) -> Tensor",
    _like_product,
)
def int8_gemm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None, out_dtype: torch.dtype, backend: str
) -> Tensor:
    return _gemm(a, a_scale, b, b_scale, None, block, out_dtype, backend)


@register_op(
    "(Tensor bias, Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, int? block, ScalarType out_dtype, str backend)"
    " -> Tensor",
    lambda bias, *others: _like_product(*others),
)
def int8_addmm(
    bias: Tensor,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    block: int | None,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return _gemm(a, a_scale, b, b_scale, bias, block, out_dtype, backend)


@register_op(
    "(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, int? block, str backend) -> (Tensor, Tensor)",
    _like_quantized_product,
)
def int8_gemm_quant(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None, backend: str
) -> Quantized:
    return _gemm_quant(a, a_scale, b, b_scale, None, block, backend)


@register_op(
    "(Tensor bias, Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, int? block, str backend) -> (Tensor, Tensor)",
    lambda bias, *others: _like_quantized_product(*others),
)
def int8_addmm_quant(
    bias: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None, backend: str
) -> Quantized:
    return _gemm_quant(a, a_scale, b, b_scale, bias, block, backend)


@register_op(
    "(Tensor codes, Tensor scale, int? block, str approximate, str backend) -> (Tensor, Tensor)",
    lambda codes, scale, block, approximate, backend: _like_quantized(codes, block),
)
def int8_gelu(codes: Tensor, scale: Tensor, block: int | None, approximate: str, backend: str) -> Quantized:
    check_block(block)
    check_quantized(codes, scale, block)
    check_gelu(approximate)
    if codes.numel() and runs_triton(backend, codes):
        from . import gpu

        return gpu.int8_gelu(codes, scale, block, approximate)
    return eager.int8_gelu(codes, scale, block, approximate)


@register_op(
    "(Tensor x, int group, str backend) -> (Tensor, Tensor)", lambda x, group, backend: _like_quantized(x, None)
)
def rotate_quant(x: Tensor, group: int, backend: str) -> Quantized:
    check_rotation(x, group)
    if x.numel() and runs_triton(backend, x):
        from . import gpu

        return gpu.rotate_quant(x, group)
    return eager.rotate_quant(x, group)


def _gemm(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    block: int | None,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    check_product(a, a_scale, b, b_scale, bias, block)
    if a.numel() and b.numel() and runs_triton(backend, a):
        from . import gpu

        return gpu.gemm(a, a_scale, b, b_scale, bias, block, dtype, backend)
    return eager.gemm(a, a_scale, b, b_scale, bias, block, dtype)


def _gemm_quant(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, block: int | None, backend: str
) -> Quantized:
    check_product(a, a_scale, b, b_scale, bias, block)
    if a.numel() and b.numel() and runs_triton(backend, a):
        from . import gpu

        return gpu.gemm_quant(a, a_scale, b, b_scale, bias, block, backend)
    return eager.gemm_quant(a, a_scale, b, b_scale, bias, block)
