"""The reference of every kernel, in plain PyTorch: any device, any shape. Triton kernels are tested against it."""

from .linear import dequantized_linear
from .product import gemm, gemm_quant, multiply_codes
from .quantize import act_dequant, act_quant, int8_gelu, weight_dequant, weight_quant
from .rotation import rotate, rotate_quant

__all__ = [
    "act_dequant",
    "act_quant",
    "dequantized_linear",
    "gemm",
    "gemm_quant",
    "int8_gelu",
    "multiply_codes",
    "rotate",
    "rotate_quant",
    "weight_dequant",
    "weight_quant",
]
