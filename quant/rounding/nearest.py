"""Nearest rounding: the baseline of every other method, and what they fall back to."""

from __future__ import annotations

from torch import Tensor

from ..formats import Format


def round_nearest(weight: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """Round each weight to the nearest grid point.

    Args:
        weight: Float weight, float32 ``[N, K]``.
        scale: Scales, float32, in the shape of the format's granularity.
        fmt: The format; its grid holds the codes.

    Returns:
        Codes ``[N, K]`` in the grid's dtype.
    """
    return fmt.grid.encode(weight / fmt.granularity.expand(scale, (weight.shape[0], weight.shape[1])))
