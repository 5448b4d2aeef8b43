"""LDLQ on `GroupedFormat`s: from a weight and nearest's scales to codes and the scales chosen with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...kernels.groups import GroupGrid
from ..formats import GroupedFormat, GroupScales
from .group_ldlq import STEPS, GroupedWeight, round_groups
from .ldlq import CheckCancelled


def round_grouped(
    weight: Tensor,
    scale: GroupScales,
    fmt: GroupedFormat,
    hessian: Tensor,
    check_cancelled: CheckCancelled,
    *,
    passes: int = 0,
    least_gain: float = 0.0,
    steps: Sequence[int] = STEPS,
    overwrite_hessian: bool = False,
) -> tuple[Tensor, GroupScales]:
    """Round a weight so that ``tr(E H E^T)`` is small, E being the error of the dequantized weight.

    Channel scales and codebook stay: other channel scales and a codebook fitted to the Hessian gain nothing
    (BENCHMARKS.md).

    Args:
        weight: Float weight, float32 ``[N, K]``.
        scale: Scales of nearest rounding, where the search for group scales begins.
        fmt: The format.
        hessian: Damped second moment of the layer's inputs, float32 ``[K, K]``, symmetric positive definite.
        check_cancelled: Called once per block of columns; may raise to stop.
        passes: Maximum refinement passes after LDLQ. None of them raises the cost.
        least_gain: Stop after a pass that removes less than this share of the cost.
        steps: Candidates of a group's scale, in E4M3 numbers from nearest's.
        overwrite_hessian: Let the result be computed in the Hessian's own memory, which saves one ``[K, K]`` copy.

    Returns:
        Codes ``[N, K]`` and their scales.

    Raises:
        RecipeError: The selected kernel backend is unknown or cannot run.
    """
    rounded = round_groups(
        GroupedWeight(values=weight / scale.row_channel, scale=scale.group.to(torch.float32)),
        GroupGrid.of(fmt.levels(scale), fmt.integer),
        hessian,
        check_cancelled,
        passes=passes,
        least_gain=least_gain,
        steps=steps,
        overwrite_hessian=overwrite_hessian,
    )
    chosen = replace(scale, group=rounded.scale.to(torch.float8_e4m3fn))
    return fmt.round(rounded.values.mul_(scale.row_channel), chosen), chosen
