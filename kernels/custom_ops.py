"""The custom ops behind `ops`: schema, shapes of the results, checks, and the selected implementation of each."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from . import cases, eager
from .backend import runs_triton
from .cases import Case, ProductOutputs
from .checks import (
    check_activation,
    check_block,
    check_gelu,
    check_linear,
    check_product,
    check_quantized,
    check_quantized_weight,
    check_rotation,
    check_weight,
)
from .eager.quantize import count_groups
from .first_use import is_usable
from .library import register_op
from .products import choose_product
from .tiles import GemmShape

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
    return _quantize(x, block, backend)


@register_op("(Tensor codes, Tensor scale, int? block, ScalarType dtype, str backend) -> Tensor", _like_codes)
def act_dequant(codes: Tensor, scale: Tensor, block: int | None, dtype: torch.dtype, backend: str) -> Tensor:
    check_block(block)
    check_quantized(codes, scale, block)
    if _may_run(cases.act_dequant, backend, codes, block, codes.shape[-1], dtype):
        from . import gpu

        return gpu.act_dequant(codes, scale, block, dtype)
    return eager.act_dequant(codes, scale, block, dtype)


@register_op("(Tensor w, int block, str backend) -> (Tensor, Tensor)", _like_weight)
def weight_quant(w: Tensor, block: int, backend: str) -> Quantized:
    check_block(block)
    check_weight(w)
    if _may_run(cases.weight_quant, backend, w, block, w.shape[-1], w.dtype):
        from . import gpu

        return gpu.weight_quant(w, block)
    return eager.weight_quant(w, block)


@register_op("(Tensor codes, Tensor scale, int block, ScalarType dtype, str backend) -> Tensor", _like_codes)
def weight_dequant(codes: Tensor, scale: Tensor, block: int, dtype: torch.dtype, backend: str) -> Tensor:
    check_block(block)
    check_quantized_weight(codes, scale, block)
    if _may_run(cases.weight_dequant, backend, codes, block, codes.shape[-1], dtype):
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
    if _may_run(cases.int8_gelu, backend, codes, block, codes.shape[-1], approximate):
        from . import gpu

        return gpu.int8_gelu(codes, scale, block, approximate)
    return eager.int8_gelu(codes, scale, block, approximate)


@register_op(
    "(Tensor x, int group, str backend) -> (Tensor, Tensor)", lambda x, group, backend: _like_quantized(x, None)
)
def rotate_quant(x: Tensor, group: int, backend: str) -> Quantized:
    check_rotation(x, group)
    if _may_run(cases.rotate_quant, backend, x, group, x.shape[-1], x.dtype):
        from . import gpu

        return gpu.rotate_quant(x, group)
    return eager.rotate_quant(x, group)


@register_op(
    "(Tensor x, Tensor w_codes, Tensor w_scale, Tensor? bias, int block, str backend) -> Tensor",
    lambda x, w_codes, *others: x.new_empty((*x.shape[:-1], w_codes.shape[0])),
)
def block_linear(x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, block: int, backend: str) -> Tensor:
    check_linear(x, w_codes, w_scale, bias, block)
    if x.numel() and w_codes.numel() and backend != "reference":
        rows = x.reshape(-1, x.shape[-1])
        if _may_run(cases.act_quant, backend, rows, block, rows.shape[1], x.dtype):
            from . import gpu

            outputs = ProductOutputs(dtype=x.dtype, bias=None if bias is None else bias.dtype)
            shape = GemmShape(m=rows.shape[0], n=w_codes.shape[0], k=rows.shape[1], block=block)
            config = choose_product(backend, shape, outputs, x.device)
            if config is not None:
                product = gpu.gemm(config, *gpu.act_quant(rows, block), w_codes, w_scale, bias, block, x.dtype)
                return product.view(*x.shape[:-1], shape.n)
        return eager.dequantized_linear(x, w_codes, w_scale, bias, block)
    codes, scale = eager.act_quant(x.reshape(-1, x.shape[-1]), block)
    product = eager.gemm(codes, scale, w_codes, w_scale, bias, block, x.dtype)
    return product.reshape(*x.shape[:-1], w_codes.shape[0])


def _may_run(
    make_case: Callable[..., Case], backend: str, x: Tensor, size: int | None, columns: int, kind: Hashable
) -> bool:
    """Return whether a kernel computes ``x``; at its first use it is checked on a case of the same kind."""
    return (
        x.numel() > 0
        and runs_triton(backend, x)
        and is_usable(
            make_case.__name__,
            x.device,
            backend,
            (size, kind),
            lambda: [make_case(size, columns, kind, x.device)],
        )
    )


def _quantize(x: Tensor, block: int | None, backend: str) -> Quantized:
    if _may_run(cases.act_quant, backend, x, block, x.shape[-1], x.dtype):
        from . import gpu

        return gpu.act_quant(x, block)
    return eager.act_quant(x, block)


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

        outputs = _describe_outputs(dtype, bias, b_scale)
        config = choose_product(backend, _shape_of(a, b, block), outputs, a.device)
        if config is not None:
            return gpu.gemm(config, a, a_scale, b, b_scale, bias, block, dtype)
    return eager.gemm(a, a_scale, b, b_scale, bias, block, dtype)


def _gemm_quant(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, block: int | None, backend: str
) -> Quantized:
    """Compute blocks in one pass. Rows take two: a row's scale needs the whole row."""
    if block is None:
        return _quantize(_gemm(a, a_scale, b, b_scale, bias, None, torch.float32, backend), None, backend)
    check_product(a, a_scale, b, b_scale, bias, block)
    if a.numel() and b.numel() and runs_triton(backend, a):
        from . import gpu

        outputs = _describe_outputs(torch.float32, bias, b_scale, quantized=True)
        config = choose_product(backend, _shape_of(a, b, block), outputs, a.device)
        if config is not None:
            return gpu.gemm_quant(config, a, a_scale, b, b_scale, bias, block)
    return eager.gemm_quant(a, a_scale, b, b_scale, bias, block)


def _shape_of(a: Tensor, b: Tensor, block: int | None) -> GemmShape:
    return GemmShape(m=a.shape[0], n=b.shape[0], k=a.shape[1], block=block)


def _describe_outputs(
    dtype: torch.dtype, bias: Tensor | None, b_scale: Tensor, *, quantized: bool = False
) -> ProductOutputs:
    bias_dtype = None if bias is None else bias.dtype
    return ProductOutputs(dtype=dtype, bias=bias_dtype, one_scale=b_scale.ndim == 0, quantized=quantized)
