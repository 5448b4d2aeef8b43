"""LDLQ within a group of columns that share a scale, as `quant` calls it for each group: one kernel on a GPU.

The Triton kernel computes in float32, without TF32 and without fusing products with sums. It differs from the eager
reference only in the order of two sums: the feedback to a column from the others of its group, and the cost of a group.
A code or a scale is the same unless a target lies within float32 rounding of a tie, or two candidates cost the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import cases
from .backend import LDLQ, get_kernel_backend, runs_triton
from .checks import check_group
from .eager import groups as eager
from .eager.groups import GroupGrid, RoundedGroup
from .first_use import is_usable

__all__ = ["GroupGrid", "RoundedGroup", "round_group"]


def round_group(
    grid: GroupGrid,
    weight: Tensor,
    targets: Tensor,
    factor: Tensor,
    pivots: Tensor,
    scales: Tensor,
    costs: Sequence[float] | None = None,
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
        costs: ``pivots`` as numbers; None: they are read, which waits for a GPU that runs without Triton.

    Raises:
        KernelError: Operands do not fit each other, or the selected backend cannot run.
    """
    check_group(weight, targets, factor, pivots, scales)
    if _runs_triton(grid, weight):
        from .gpu import groups

        return groups.round_group(grid, weight, targets, factor, pivots, scales)
    return eager.round_group(grid, weight, targets, factor, pivots, scales, costs)


def _runs_triton(grid: GroupGrid, weight: Tensor) -> bool:
    backend, device = get_kernel_backend(), weight.device
    if not weight.numel() or not runs_triton(backend, weight, LDLQ):
        return False
    variant = len(weight), grid.integer
    return is_usable("group ldlq", device, backend, variant, lambda: [cases.group_ldlq(*variant, device)])
