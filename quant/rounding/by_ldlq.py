"""LDLQ for every format: `ldlq` where scales are fixed, `grouped` where they are chosen with the codes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..formats import Format, GroupedFormat, Scale, ScaledFormat
from .group_ldlq import STEPS
from .grouped import round_grouped
from .ldlq import CheckCancelled, round_ldlq


def round_by_ldlq(
    weight: Tensor,
    scale: Any,
    fmt: Format,
    hessian: Tensor,
    check_cancelled: CheckCancelled,
    *,
    bound: bool = False,
    passes: int = 0,
    least_gain: float = 0.0,
) -> tuple[Tensor, Scale]:
    """Round a weight so that ``tr(E H E^T)`` is small, E being the error of the dequantized weight.

    Args:
        weight: Float weight, float32 ``[N, K]``.
        scale: Scales of nearest rounding, as the format shapes them.
        fmt: The format.
        hessian: Damped second moment of the layer's inputs, float32 ``[K, K]``, symmetric positive definite;
            overwritten.
        check_cancelled: Called once per block of columns; may raise to stop.
        bound: Stay close to nearest: with its scales, and codes within one grid step of its codes where scales are of
            one level.
        passes: Maximum passes of coordinate descent after LDLQ. None of them raises the cost.
        least_gain: Stop after a pass that removes less than this share of the cost.

    Returns:
        Codes ``[N, K]`` in the format's code dtype, and their scales.

    Raises:
        RecipeError: The selected kernel backend is unknown or cannot run.
    """
    if isinstance(fmt, GroupedFormat):
        return round_grouped(
            weight,
            scale,
            fmt,
            hessian,
            check_cancelled,
            passes=passes,
            least_gain=least_gain,
            steps=(0,) if bound else STEPS,
            overwrite_hessian=True,
        )
    assert isinstance(fmt, ScaledFormat)
    codes = round_ldlq(
        weight,
        scale,
        fmt,
        hessian,
        check_cancelled,
        adjacent=bound,
        passes=passes,
        least_gain=least_gain,
        overwrite_hessian=True,
    )
    return codes, scale
