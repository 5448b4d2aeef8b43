"""Nearest rounding: the baseline of every other method, and what they fall back to."""

from __future__ import annotations

from torch import Tensor

from ..formats import Format, Scale


def round_nearest(weight: Tensor, scale: Scale, fmt: Format) -> Tensor:
    """Round each weight to the nearest grid point.

    Args:
        weight: Float weight, float32 ``[N, K]``.
        scale: Scales, as the format shapes them.
        fmt: The format.

    Returns:
        Codes ``[N, K]`` in the format's code dtype.
    """
    return fmt.round(weight, scale)
