"""The kernels as functions of tensors, each a custom op ``torch.ops.calibrated_rounding.<name>`` that torch.compile
traces.

Activations are bfloat16, float16 or float32, codes int8, scales float32; shapes and strides are free. ``block`` is 64
or 128 for scales per ``1 x block`` group of an activation and per ``block x block`` tile of a weight (the last may be
ragged), and None for scales per row. Nothing is differentiable. All functions raise KernelError if operands do not fit
each other, or if the backend that is selected in `backend` cannot run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import custom_ops
from .backend import get_kernel_backend

Quantized = tuple[Tensor, Tensor]
"""Codes int8 and scales float32."""


def act_quant(x: Tensor, block: int | None) -> Quantized:
    """Quantize an activation by the absolute maximum of each group.

    Args:
        x: Activation ``[..., K]``.
        block: Width of a group; None: one group per row.

    Returns:
        Codes ``[..., K]`` and scales ``[..., ceil(K / block)]``, or ``[..., 1]`` for block None.
    """
    codes, scale = custom_ops.act_quant(x, block, get_kernel_backend())
    return codes, scale


def act_dequant(codes: Tensor, scale: Tensor, block: int | None, dtype: torch.dtype) -> Tensor:
    """Dequantize an activation: the inverse of `act_quant`.

    Args:
        codes: ``[..., K]``.
        scale: ``[..., ceil(K / block)]``, or ``[..., 1]`` for block None.
        block: Width of a group; None: one group per row.
        dtype: Of the result.

    Returns:
        ``codes * scale``, ``[..., K]``.
    """
    return _as_tensor(custom_ops.act_dequant(codes, scale, block, dtype, get_kernel_backend()))


def weight_quant(w: Tensor, block: int) -> Quantized:
    """Quantize a weight by the absolute maximum of each tile.

    Args:
        w: Weight ``[N, K]``.
        block: Side of a tile.

    Returns:
        Codes ``[N, K]`` and scales ``[ceil(N / block), ceil(K / block)]``.
    """
    codes, scale = custom_ops.weight_quant(w, block, get_kernel_backend())
    return codes, scale


def weight_dequant(codes: Tensor, scale: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    """Dequantize a weight: the inverse of `weight_quant`.

    Args:
        codes: ``[N, K]``.
        scale: ``[ceil(N / block), ceil(K / block)]``.
        block: Side of a tile.
        dtype: Of the result.

    Returns:
        ``codes * scale``, ``[N, K]``.
    """
    return _as_tensor(custom_ops.weight_dequant(codes, scale, block, dtype, get_kernel_backend()))


def int8_gemm(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None, out_dtype: torch.dtype
) -> Tensor:
    """Multiply quantized matrices: ``(a * a_scale) @ (b * b_scale).T``.

    Without blocks the sum is an exact int32, scaled once; K is at most 131,071. With blocks, exact int32 sums of
    ``block`` terms are scaled and added in float32.

    Args:
        a: Codes ``[M, K]``.
        a_scale: ``[M, ceil(K / block)]``, or ``[M, 1]`` for block None.
        b: Codes ``[N, K]``.
        b_scale: ``[ceil(N / block), ceil(K / block)]``; for block None ``[N, 1]``, or ``[]`` for one scale.
        block: 64, 128 or None.
        out_dtype: Of the result.

    Returns:
        ``[M, N]``.
    """
    return _as_tensor(custom_ops.int8_gemm(a, a_scale, b, b_scale, block, out_dtype, get_kernel_backend()))


def int8_addmm(
    bias: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None, out_dtype: torch.dtype
) -> Tensor:
    """Compute `int8_gemm` plus ``bias [N]``, which is added in float32."""
    return _as_tensor(custom_ops.int8_addmm(bias, a, a_scale, b, b_scale, block, out_dtype, get_kernel_backend()))


def int8_gemm_quant(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None) -> Quantized:
    """Compute `int8_gemm` in float32 and quantize it as `act_quant` does with the same ``block``.

    Returns:
        Codes ``[M, N]`` and scales ``[M, ceil(N / block)]``, or ``[M, 1]`` for block None.
    """
    codes, scale = custom_ops.int8_gemm_quant(a, a_scale, b, b_scale, block, get_kernel_backend())
    return codes, scale


def int8_addmm_quant(
    bias: Tensor, a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block: int | None
) -> Quantized:
    """Compute `int8_addmm` in float32 and quantize it as `int8_gemm_quant` does."""
    codes, scale = custom_ops.int8_addmm_quant(bias, a, a_scale, b, b_scale, block, get_kernel_backend())
    return codes, scale


def int8_gelu(codes: Tensor, scale: Tensor, block: int | None, approximate: str) -> Quantized:
    """Apply GELU to a quantized activation and quantize the result in the same groups.

    Args:
        codes: ``[..., K]``.
        scale: ``[..., ceil(K / block)]``, or ``[..., 1]`` for block None.
        block: Width of a group; None: one group per row.
        approximate: "none" or "tanh".

    Returns:
        Codes and scales in the same shapes.
    """
    out, out_scale = custom_ops.int8_gelu(codes, scale, block, approximate, get_kernel_backend())
    return out, out_scale


def rotate_quant(x: Tensor, group: int) -> Quantized:
    """Rotate an activation in groups and quantize it per row (ConvRot, arXiv 2512.03673).

    The rotation multiplies by the normalised regular Hadamard matrix of ComfyUI's ``convrot``, in float32.

    Args:
        x: Activation ``[..., K]``.
        group: 16, 64 or 256; divides K.

    Returns:
        Codes ``[..., K]`` and scales ``[..., 1]``.
    """
    codes, scale = custom_ops.rotate_quant(x, group, get_kernel_backend())
    return codes, scale


def block_linear(x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, block: int) -> Tensor:
    """Run a linear layer with block scales; the activation is quantized in ``1 x block`` groups.

    Where Triton does not run, the weight is dequantized to the dtype of ``x`` and multiplied instead: that takes less
    time and memory, and the activation keeps its precision. The backend "reference" multiplies in INT8 everywhere.

    Args:
        x: Activation ``[..., K]``.
        w_codes: ``[N, K]``.
        w_scale: ``[ceil(N / block), ceil(K / block)]``.
        bias: ``[N]`` or None.
        block: 64 or 128.

    Returns:
        ``[..., N]`` in the dtype of ``x``.
    """
    return _as_tensor(custom_ops.block_linear(x, w_codes, w_scale, bias, block, get_kernel_backend()))


def row_linear(x: Tensor, w_codes: Tensor, w_scale: Tensor, bias: Tensor | None, group: int | None) -> Tensor:
    """Run a linear layer with row scales; the activation is quantized per row.

    Args:
        x: Activation ``[..., K]``.
        w_codes: ``[N, K]``.
        w_scale: ``[N, 1]``, or ``[]`` for one scale.
        bias: ``[N]`` or None.
        group: Rotation group of the activation; None: not rotated.

    Returns:
        ``[..., N]`` in the dtype of ``x``.
    """
    codes, scale = act_quant(x, None) if group is None else rotate_quant(x, group)
    a, a_scale = codes.reshape(-1, codes.shape[-1]), scale.reshape(-1, 1)
    if bias is None:
        product = int8_gemm(a, a_scale, w_codes, w_scale, None, x.dtype)
    else:
        product = int8_addmm(bias, a, a_scale, w_codes, w_scale, None, x.dtype)
    return product.reshape(*x.shape[:-1], w_codes.shape[0])


def _as_tensor(result: Tensor) -> Tensor:
    """Return an op's result; typed, because ops are not."""
    return result
