"""Codes and scales back to floating point."""

from __future__ import annotations

from torch import Tensor

from .rotation import rotate
from .table import Format


def dequantize_layer(codes: Tensor, scale: Tensor, fmt: Format, group: int | None, shape: tuple[int, int]) -> Tensor:
    """Dequantize a layer.

    Args:
        codes: ``[N, K]`` with padding, in the grid's dtype.
        scale: float32, in the granularity's shape.
        fmt: the format.
        group: inputs per rotation group; None if the weight is not rotated.
        shape: ``(N, K)`` without padding.

    Returns:
        float32 ``[N, K]``, rotated back.
    """
    weight = fmt.dequantize(codes, scale)
    return (rotate(weight, group) if group else weight)[: shape[0], : shape[1]]
