"""LDLQ for grids that depend on the scale of a group of inputs: scales and codes are chosen together.

`ldlq` rounds column by column; here groups of columns take their turns, the most important one first. When a group's
turn comes, the feedback from all groups before it is known. Each candidate for its scale, a neighbour of the scale that
nearest rounding has, is tried with all of its columns rounded, and the one that costs least stays. Refinement passes
then choose each group's scale and codes again while all other groups stay.

Everything is in units of the row's channel scale: a grid point is a level times a group scale. Weights are transposed
here, ``[K, N]``. Rows of a weight do not depend on each other: on the CPU, threads take some rows each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...kernels import groups
from ...kernels.errors import KernelError
from ...kernels.groups import GroupGrid
from ..errors import RecipeError
from ..formats.grouped import load_constants
from ..parallel import cpu_blocks, run_all
from .cholesky import factorize
from .ldlq import BLOCK, CheckCancelled

STEPS = tuple(range(-3, 8))
"""Candidates of LDLQ, in E4M3 numbers from nearest's scale: 8 are twice as large. Upwards they reach further, because
weights that make up for others' errors grow, and for NVFP4 from amax / 6 to beyond amax / 4."""

PASS_STEPS = (0, -1, 1)
"""Candidates of a refinement pass; the present scale comes first and wins ties."""

LARGEST_BITS = 0x7E
"""Bits of 448, the last finite E4M3 number."""

PART_ROWS = 1024
"""Rows of a weight that a thread rounds at a time: their candidates stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class GroupedWeight:
    """A weight on grouped grids, float or rounded."""

    values: Tensor
    """float32 ``[N, K]``, in units of the channel scales."""

    scale: Tensor
    """Group scales, float32 ``[N, K / g]``, all of them E4M3 numbers."""


@dataclass(frozen=True, kw_only=True)
class _Factors:
    """A Hessian in the order of rounding, reversed, and its factors: of the whole and of each group alone."""

    hessian: Tensor
    """``[K, K]``."""

    lower: Tensor
    """L of ``H = L D L^T``, unit lower triangular ``[K, K]``."""

    pivots: Tensor
    """D, ``[K]``."""

    corners: Tensor
    """Cholesky factors of the groups' own blocks, ``[K / g, g, g]``."""

    costs: Sequence[float]
    """`pivots` as numbers: reading them for each group would wait for the GPU each time."""

    corner_costs: Sequence[Sequence[float]]
    """The same of `corners`: squares of their diagonals."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some rows of a weight while they are rounded: transposed, columns in reverse order of rounding."""

    weight: Tensor
    """Float weights ``[K, n]``."""

    scale: Tensor
    """``[K / g, n]``; changes."""

    errors: Tensor
    """Rounded minus float weights ``[K, n]``; changes."""

    grid: GroupGrid

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return len(self.weight) // len(self.scale)

    def candidates(self, index: int, steps: Tensor) -> Tensor:
        """Return the scales ``[C, n]`` that lie some E4M3 numbers, int16 ``[C, 1]``, from a group's present scale."""
        scale = self.scale[index]
        bits = scale.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
        moved = (bits + steps).clamp_(1, LARGEST_BITS).to(torch.uint8)
        return moved.view(torch.float8_e4m3fn).to(torch.float32)


def round_groups(
    weight: GroupedWeight,
    grid: GroupGrid,
    hessian: Tensor,
    check_cancelled: CheckCancelled = lambda: None,
    *,
    passes: int = 0,
    least_gain: float = 0.0,
    steps: Sequence[int] = STEPS,
    overwrite_hessian: bool = False,
) -> GroupedWeight:
    """Round a weight and choose its group scales so that ``tr(E H E^T)`` is small, E being the error.

    Args:
        weight: Float weight; its scales are where the search begins.
        grid: What codes stand for.
        hessian: Damped second moment of the layer's inputs, float32 ``[K, K]``, symmetric positive definite. A Hessian
            that is singular in float32 is damped further until it is not.
        check_cancelled: Called once per block of columns; may raise to stop.
        passes: Maximum refinement passes after LDLQ. None of them raises the cost.
        least_gain: Stop after a pass that removes less than this share of the cost.
        steps: Candidates of a group's scale in LDLQ, in E4M3 numbers from the scale of ``weight``.
        overwrite_hessian: Let the result be computed in the Hessian's own memory, which saves one ``[K, K]`` copy.

    Returns:
        Grid points and their scales.

    Raises:
        RecipeError: The selected kernel backend is unknown or cannot run.
        torch.linalg.LinAlgError: The Hessian holds NaN.
    """
    rows, count = weight.scale.shape
    order, group_order = _choose_order(weight, hessian)
    permuted = hessian[order[:, None], order]
    if overwrite_hessian:
        permuted = hessian.copy_(permuted)
    places = cpu_blocks(rows, PART_ROWS, hessian.device)

    def pose(place: slice) -> _Part:
        transposed = weight.values[place].T[order].contiguous()
        scale = weight.scale[place].T[group_order].contiguous()
        return _Part(weight=transposed, scale=scale, errors=torch.zeros_like(transposed), grid=grid)

    parts = run_all(pose, places)
    try:
        factors = _factorize_groups(permuted, count)
        run_all(partial(_run_ldlq, factors=factors, steps=steps, check_cancelled=check_cancelled), parts)
        for _ in range(passes):
            costs = run_all(partial(_run_pass, factors=factors, check_cancelled=check_cancelled), parts)
            before, removed = (math.fsum(values) for values in zip(*costs, strict=True))
            if before <= 0 or removed < least_gain * before:
                break
    except KernelError as error:
        raise RecipeError(str(error)) from None
    values, scale = torch.empty_like(weight.values), torch.empty_like(weight.scale)
    for place, part in zip(places, parts, strict=True):
        values[place, order] = (part.weight + part.errors).T
        scale[place, group_order] = part.scale.T
    return GroupedWeight(values=values, scale=scale)


def compute_cost(values: Tensor, weight: Tensor, hessian: Tensor) -> Tensor:
    """Return the cost ``E H E^T`` of every row, ``[N]``, E being ``values - weight``."""
    error = values - weight
    return (error @ hessian * error).sum(dim=1)


def _choose_order(weight: GroupedWeight, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of columns ``[K]`` and of groups: the most important come last, and are rounded first."""
    count = weight.scale.shape[1]
    inputs = hessian.diagonal().view(count, -1)
    group_order = weight.scale.square().mean(dim=0).mul_(inputs.mean(dim=1)).argsort()
    width = inputs.shape[1]
    within = inputs[group_order].argsort(dim=1)
    return (group_order[:, None] * width + within).flatten(), group_order


def _factorize_groups(hessian: Tensor, count: int) -> _Factors:
    lower = factorize(hessian).tril_()
    root = lower.diagonal().clone()
    lower.div_(root)
    width = len(hessian) // count
    blocks = hessian.view(count, width, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    corners = torch.linalg.cholesky(blocks)
    pivots, squares = root.square_(), corners.diagonal(dim1=1, dim2=2).square()
    return _Factors(
        hessian=hessian,
        lower=lower,
        pivots=pivots,
        corners=corners,
        costs=pivots.tolist(),
        corner_costs=squares.tolist(),
    )


def _run_ldlq(part: _Part, factors: _Factors, steps: Sequence[int], check_cancelled: CheckCancelled) -> None:
    """Round all columns of some rows, from the last group to the first."""
    errors, lower, width = part.errors, factors.lower, part.group
    moves = load_constants(tuple(steps), torch.int16, errors.device)[:, None]
    for stop in range(len(lower), 0, -BLOCK):
        check_cancelled()
        columns = slice(max(0, stop - BLOCK), stop)
        targets = part.weight[columns] - lower[stop:, columns].T @ errors[stop:]
        for start in range(stop - width, columns.start - 1, -width):
            own, later = slice(start, start + width), slice(start + width, stop)
            target = targets[start - columns.start :][:width] - lower[later, own].T @ errors[later]
            rounded = groups.round_group(
                part.grid,
                part.weight[own],
                target,
                lower[own, own].T,
                factors.pivots[own],
                part.candidates(start // width, moves),
                factors.costs[own],
            )
            errors[own], part.scale[start // width] = rounded.errors, rounded.scale


def _run_pass(part: _Part, factors: _Factors, check_cancelled: CheckCancelled) -> tuple[float, float]:
    """Choose scale and codes of each group again while all others stay; keep what costs less.

    Returns:
        The cost of these rows, each block's counted before it was changed, and what was removed of it.
    """
    hessian, errors, width = factors.hessian, part.errors, part.group
    moves = load_constants(PASS_STEPS, torch.int16, errors.device)[:, None]
    # Summed in float64 where they are: reading each would wait for the GPU.
    cost, removed = torch.zeros(2, dtype=torch.float64, device=errors.device)
    for start in range(0, len(hessian), BLOCK):
        check_cancelled()
        stop = min(start + BLOCK, len(hessian))
        gradient = hessian[start:stop] @ errors
        cost += (errors[start:stop] * gradient).sum()
        for first in range(start, stop, width):
            own = slice(first, first + width)
            before = errors[own].clone()
            removed += _improve_group(part, factors, first, gradient[first - start :][:width], moves)
            later = slice(first + width, stop)
            gradient[first + width - start :].addmm_(hessian[later, own], errors[own] - before)
    return float(cost), float(removed)


def _improve_group(part: _Part, factors: _Factors, start: int, gradient: Tensor, moves: Tensor) -> Tensor:
    """Round a group once more, in the rows where that costs less; returns the cost removed.

    Args:
        part: The rows; errors and scales of the group change.
        factors: Of the Hessian.
        start: The group's first column.
        gradient: Half the gradient of the cost with respect to the group's errors, ``[g, n]``.
        moves: Candidates, in E4M3 numbers from the present scale.
    """
    own, index = slice(start, start + part.group), start // part.group
    corner, costs = factors.corners[index], factors.corner_costs[index]
    weight, errors = part.weight[own], part.errors[own]
    # The group's errors would cost least at `errors - excess`, if they were free.
    excess = torch.cholesky_solve(gradient, corner)
    root = corner.diagonal()
    factor, pivots = (corner / root).T, root.square()
    present = (factor @ excess).square_().mul_(pivots[:, None]).sum(dim=0)
    target = weight + errors - excess
    rounded = groups.round_group(part.grid, target, target, factor, pivots, part.candidates(index, moves), costs)
    better = rounded.cost < present
    part.errors[own] = torch.where(better, rounded.errors + target - weight, errors)
    part.scale[index] = torch.where(better, rounded.scale, part.scale[index])
    return (present - rounded.cost).clamp_(min=0).sum()
