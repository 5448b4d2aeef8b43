"""Codes and scales back to floating point."""

from __future__ import annotations

from torch import Tensor

from .base import Format, Scale, Shape
from .rotation import rotate


def dequantize_layer(codes: Tensor, scale: Scale, fmt: Format, group: int | None, shape: Shape) -> Tensor:
    """Dequantize a layer.

    Args:
        codes: ``[N, K]`` with padding.
        scale: as the format shapes it.
        fmt: the format.
        group: inputs per rotation group; None if the weight is not rotated.
        shape: ``(N, K)`` without padding.

    Returns:
        float32 ``[N, K]``, rotated back.
    """
    return restore(fmt.dequantize(codes, scale), group, shape)


def restore(weight: Tensor, group: int | None, shape: Shape) -> Tensor:
    """Take a weight from the basis that it is stored in back to its own: rotated back, padding cut off."""
    return (rotate(weight, group) if group else weight)[: shape[0], : shape[1]]
