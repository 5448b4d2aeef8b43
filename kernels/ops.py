"""The kernels as functions of tensors, each a custom op ``torch.ops.calibrated_rounding.<name>`` that torch.compile
traces.

Activations are bfloat16, float16 or float32, codes int8, scales float32. ``block`` is 64 or 128 where scales stand for
1 x block groups of an activation and block x block tiles of a weight (a last one may be ragged), None where they stand
for rows. Any shape and any strides; nothing is differentiable. All raise KernelError where operands do not fit each
other. Which implementation runs is chosen in `backend`, and passed to the ops as their last argument.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import custom_ops
from .backend import get_kernel_backend

Quantized = tuple[Tensor, Tensor]
"""Codes int8 and scales float32."""


def act_quant(x: Tensor, block: int | None) -> Quantized:
    """Codes ``[..., K]`` and scales ``[..., ceil(K / block)]`` (``[..., 1]`` for block None) of an activation."""
    codes, scale = custom_ops.act_quant(x, block, get_kernel_backend())
    return codes, scale


def act_dequant(codes: Tensor, scale: Tensor, block: int | None, dtype: torch.dtype) -> Tensor:
    """``codes * scale`` as ``dtype``, the inverse of `act_quant`."""
    return _tensor(custom_ops.act_dequant(codes, scale, block, dtype, get_kernel_backend()))


def weight_quant(w: Tensor, block: int) -> Quantized:
    """Codes ``[N, K]`` and scales ``[ceil(N / block), ceil(K / block)]`` of a weight ``[N, K]``."""
    codes, scale = custom_ops.weight_quant(w, block, get_kernel_backend())
    return codes, scale


def weight_dequant(codes: Tensor, scale: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    """``codes * scale`` as ``dtype``, the inverse of `weight_quant`."""
    return _tensor(custom_ops.weight_dequant(codes, scale, block, dtype, get_kernel_backend()))


def int8_gemm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None, out_dtype: torch.dtype
) -> Tensor:
    """``(a * a_scale) @ (b * b_scale).T``, ``[M, N]``, of codes ``a [M, K]`` and ``b [N, K]``.

    Block None: ``a_scale [M, 1]``, ``b_scale [N, 1]`` or ``[]``; the sum is an exact int32, K at most 131,071. Else
    ``a_scale [M, ceil(K / block)]``, ``b_scale [ceil(N / block), ceil(K / block)]``; exact int32 sums of ``block``
    terms are scaled and added in float32.
    """
    return _tensor(custom_ops.int8_gemm(a, a_scale, b, b_scale, block, out_dtype, get_kernel_backend()))


def int8_addmm(
    bias: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None, out_dtype: torch.dtype
) -> Tensor:
    """`int8_gemm` plus ``bias [N]``, which is added in float32."""
    return _tensor(custom_ops.int8_addmm(bias, a, a_scale, b, b_scale, block, out_dtype, get_kernel_backend()))


def int8_gemm_quant(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None) -> Quantized:
    """`int8_gemm` in float32, quantized as `act_quant` does with the same ``block``: ``[M, N]``, ``[M, ceil(N /
    block)]``.
    """
    codes, scale = custom_ops.int8_gemm_quant(a, a_scale, b, b_scale, block, get_kernel_backend())
    return codes, scale


def int8_addmm_quant(
    bias: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None
) -> Quantized:
    """`int8_addmm` in float32, quantized as `int8_gemm_quant` does."""
    codes, scale = custom_ops.int8_addmm_quant(bias, a, a_scale, b, b_scale, block, get_kernel_backend())
    return codes, scale


def int8_gelu(codes: Tensor, scale: Tensor, block: int | None, approximate: str) -> Quantized:
    """GELU of a quantized activation, quantized again in the same grouping; ``approximate`` is "none" or "tanh"."""
    out, out_scale = custom_ops.int8_gelu(codes, scale, block, approximate, get_kernel_backend())
    return out, out_scale


def rotate_quant(x: Tensor, group: int) -> Quantized:
    """Codes ``[..., K]`` and scales ``[..., 1]`` of ``x``, rotated in groups of 16, 64 or 256 (ConvRot, arXiv
    2512.03673).

    The rotation is the normalised regular Hadamard matrix that ComfyUI's ``convrot`` multiplies weights by, in float32.
    """
    codes, scale = custom_ops.rotate_quant(x, group, get_kernel_backend())
    return codes, scale


def block_linear(x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, block: int) -> Tensor:
    """``[..., N]`` in the dtype of ``x [..., K]``, which is quantized in 1 x block groups on the way."""
    codes, scale = act_quant(x, block)
    return _linear(x, codes, scale, w_codes, w_scale, bias, block)


def row_linear(x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, group: int | None) -> Tensor:
    """``[..., N]`` in the dtype of ``x [..., K]``, which is quantized per row on the way, and rotated before if
    ``group``.
    """
    codes, scale = act_quant(x, None) if group is None else rotate_quant(x, group)
    return _linear(x, codes, scale, w_codes, w_scale, bias, None)


def _linear(
    x: Tensor, codes: Tensor, scale: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, block: int | None
) -> Tensor:
    a, a_scale = codes.reshape(-1, codes.shape[-1]), scale.reshape(-1, scale.shape[-1])
    if bias is None:
        product = int8_gemm(a, a_scale, w_codes, w_scale, block, x.dtype)
    else:
        product = int8_addmm(bias, a, a_scale, w_codes, w_scale, block, x.dtype)
    return product.reshape(*x.shape[:-1], w_codes.shape[0])


def _tensor(result: Tensor) -> Tensor:
    """An op's result, for the type checker: ops are untyped."""
    return result
