"""Nearest rounding: the baseline of every other method, and what they fall back to."""

from __future__ import annotations

from torch import Tensor

from ..formats import Format, Scale


def round_nearest(weight: Tensor, scale: Scale, fmt: Format, out: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Round each weight to the nearest grid point.

    Args:
        weight: Float weight, float32 ``[N, K]``.
        scale: Scales, as the format shapes them.
        fmt: The format.
        out: Where to write the codes, and the weights that they stand for, float32 ``[N, K]``; None: codes in memory of
            their own.

    Returns:
        Codes ``[N, K]`` in the format's code dtype.
    """
    if out is None:
        return fmt.round(weight, scale)
    codes, values = out
    fmt.round_into(weight, scale, codes, values)
    return codes
