"""Codes and scales back to floating point."""

from __future__ import annotations

from torch import Tensor

from .rotation import rotate
from .table import Format


def dequantize_layer(codes: Tensor, scale: Tensor, fmt: Format, group: int | None, shape: tuple[int, int]) -> Tensor:
    """float32 ``[N, K]`` in the basis of the inputs, padding removed."""
    weight = fmt.dequantize(codes, scale)
    return (rotate(weight, group) if group else weight)[: shape[0], : shape[1]]
