"""LDLQ within a group of columns that share a scale, as `quant` calls it for each group: one kernel on a GPU."""

from __future__ import annotations

from torch import Tensor

from .checks import check_group
from .eager import groups as eager
from .eager.groups import GroupGrid, RoundedGroup

__all__ = ["GroupGrid", "RoundedGroup", "round_group"]


def round_group(
    grid: GroupGrid, weight: Tensor, targets: Tensor, factor: Tensor, pivots: Tensor, scales: Tensor
) -> RoundedGroup:
    """Round a group's columns from the last to the first, with the candidate scale of least cost in each row.

    Column ``i`` is rounded from ``targets[i] - sum_{j > i} factor[i, j] errors[j]``; its distance from there, squared,
    costs ``pivots[i]`` (LDLQ: Chee et al., arXiv 2307.13304, section 3). The first of equally good candidates is
    chosen.

    Args:
        grid: What codes stand for.
        weight: Float weights, float32 ``[B, N]``, in units of the grid.
        targets: Weights less the feedback from other groups, float32 ``[B, N]``.
        factor: Block of ``L^T`` on the diagonal, float32 ``[B, B]``; only entries above its own diagonal are read.
        pivots: Block of D, float32 ``[B]``, of ``H = L D L^T``.
        scales: Candidates, float32 ``[C, N]``, above 0.

    Raises:
        KernelError: Operands do not fit each other, or the selected backend cannot run.
    """
    check_group(grid, weight, targets, factor, pivots, scales)
    return eager.round_group(grid, weight, targets, factor, pivots, scales)
