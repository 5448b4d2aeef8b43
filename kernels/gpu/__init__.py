"""The Triton kernels, behind the functions of the eager reference. Importing this imports Triton."""

from .product import gemm, gemm_quant
from .quantize import act_dequant, act_quant, int8_gelu, rotate_quant, weight_dequant, weight_quant

__all__ = [
    "act_dequant",
    "act_quant",
    "gemm",
    "gemm_quant",
    "int8_gelu",
    "rotate_quant",
    "weight_dequant",
    "weight_quant",
]
