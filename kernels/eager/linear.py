"""A linear layer with a block-wise INT8 weight, computed in the activation's dtype."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from .quantize import weight_dequant


def dequantized_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, block: int) -> Tensor:
    """Dequantize the weight to the dtype of ``x`` and multiply: the only large temporary is that weight.

    Args:
        x: Activation ``[..., K]``.
        codes: Int8 ``[N, K]``.
        scale: Float32 ``[ceil(N / block), ceil(K / block)]``.
        bias: ``[N]`` or None.
        block: Side of a scale block.

    Returns:
        ``[..., N]`` in the dtype of ``x``.
    """
    weight = weight_dequant(codes, scale, block, x.dtype)
    return linear(x, weight, None if bias is None else bias.to(x.dtype))
