"""LDLQ: round a weight column by column; later columns compensate for the errors of earlier ones (GPTQ order).

The cost of a rounding error E is ``tr(E H E^T)``. With ``H = L D L^T``, L unit lower triangular, it is the sum over
columns of ``D_i ||E_i + sum_{j > i} E_j L_ji||^2``: rounded from the last column to the first, each column's best
target is known when its turn comes (LDLQ: Chee et al., arXiv 2307.13304, section 3, who show that it equals GPTQ,
Frantar et al., arXiv 2210.17323). It takes one Cholesky factorization and no inverse.

Columns are handled in blocks, so that nearly all the work is matrix products; a kernel of `kernels.ldlq` does the rest.
Weights are transposed here, ``[K, N]``, so that a column is contiguous. Rows of a weight do not depend on each other:
on the CPU, threads take some rows each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...kernels import ldlq
from ...kernels.errors import KernelError
from ..errors import RecipeError
from ..formats import ScaledFormat
from ..formats.grids import Grid
from ..parallel import blocks, cpu_blocks, run_all
from .cholesky import factorize

BLOCK = 128

PART_ROWS = 1024
"""Rows of a weight that a thread rounds at a time: few enough that a layer keeps threads busy, and enough that they are
not busy with calling torch."""

CheckCancelled = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class LdlqProblem:
    """Rows of a weight to round: transposed, float32, columns in reverse order of rounding."""

    weight: Tensor
    """Float weights ``[K, N]``."""

    scale: Tensor
    """Scales ``[K, N]``, expanded if all columns share them."""

    hessian: Tensor
    """``[K, K]``."""

    grid: Grid

    adjacent: bool
    """Whether a code must be one of the two grid points around its weight."""

    errors: Tensor
    """Rounded minus float weights, ``[K, N]``; changes while the problem is solved."""

    def column_block(self, columns: slice) -> ldlq.ColumnBlock:
        """Return a block of columns as the kernels take it."""
        weight, scale = self.weight[columns], self.scale[columns]
        limits = None
        if self.adjacent:
            scaled = weight / scale
            limits = self.grid.below(scaled), self.grid.above(scaled)
        return ldlq.ColumnBlock(weight=weight, scale=scale, grid=self.grid, limits=limits)

    def encode(self) -> Tensor:
        """Return the codes of the rounded weights, ``[K, N]``; the errors are used up."""
        return self.grid.encode(self.errors.add_(self.weight).div_(self.scale))


def round_ldlq(
    weight: Tensor,
    scale: Tensor,
    fmt: ScaledFormat,
    hessian: Tensor,
    check_cancelled: CheckCancelled,
    *,
    adjacent: bool = False,
    passes: int = 0,
    least_gain: float = 0.0,
    overwrite_hessian: bool = False,
) -> Tensor:
    """Round a weight so that ``tr(E H E^T)`` is small, E being the error of the dequantized weight.

    Args:
        weight: Float weight, float32 ``[N, K]``.
        scale: Scales, float32, in the shape of the format's granularity.
        fmt: The format; its grid holds the codes.
        hessian: Damped second moment of the layer's inputs, float32 ``[K, K]``, symmetric positive definite. A Hessian
            that is singular in float32 is damped further until it is not.
        check_cancelled: Called once per block of columns; may raise to stop.
        adjacent: Keep every code within one grid step of the nearest one.
        passes: Maximum passes of coordinate descent after LDLQ. None of them raises the cost.
        least_gain: Stop after a pass that removes less than this share of the cost.
        overwrite_hessian: Let the result be computed in the Hessian's own memory, which saves one ``[K, K]`` copy.

    Returns:
        Codes ``[N, K]`` in the grid's dtype.

    Raises:
        RecipeError: The selected kernel backend is unknown or cannot run.
        torch.linalg.LinAlgError: The Hessian holds NaN.
    """
    # The most important columns come last, so that they are rounded first and all others can compensate for them.
    order = _estimate_column_costs(weight, scale, fmt, hessian).argsort()
    permuted = _permute_square(hessian, order)
    if overwrite_hessian:
        permuted = hessian.copy_(permuted)
    wide_scale = fmt.granularity.expand(scale, (weight.shape[0], weight.shape[1])).expand(weight.shape)
    rows = cpu_blocks(len(weight), PART_ROWS, weight.device)

    def pose(part: slice) -> LdlqProblem:
        transposed = _permute_columns(weight[part], order)
        return LdlqProblem(
            weight=transposed,
            scale=_permute_scale(wide_scale[part], order),
            hessian=permuted,
            grid=fmt.grid,
            adjacent=adjacent,
            errors=torch.zeros_like(transposed),
        )

    problems = run_all(pose, rows)
    try:
        _run_ldlq(problems, permuted, check_cancelled)
        for _ in range(passes):
            if _run_descent_pass(problems, check_cancelled) < least_gain:
                break
    except KernelError as error:
        raise RecipeError(str(error)) from None
    result = torch.empty_like(weight, dtype=fmt.grid.dtype)

    def store(part: tuple[slice, LdlqProblem]) -> None:
        # Indexed as bytes: torch cannot index every 8-bit float dtype.
        result.view(torch.uint8)[part[0], order] = part[1].encode().view(torch.uint8).T

    run_all(store, zip(rows, problems, strict=True))
    return result


def _estimate_column_costs(weight: Tensor, scale: Tensor, fmt: ScaledFormat, hessian: Tensor) -> Tensor:
    """Return the expected cost of rounding each column alone, up to a factor, ``[K]``.

    Large weights lie on a coarser grid in floating point, so columns differ by more than the Hessian's diagonal.
    """
    wide_scale = fmt.granularity.expand(scale, (weight.shape[0], weight.shape[1])).expand(weight.shape)
    costs = weight.new_empty(weight.shape[1])

    def estimate(columns: slice) -> None:
        scales = wide_scale[:, columns]
        steps = fmt.grid.spacing(weight[:, columns] / scales).mul_(scales)
        costs[columns] = steps.square_().mean(dim=0)

    run_all(estimate, cpu_blocks(len(costs), BLOCK, weight.device))
    return costs.mul_(hessian.diagonal())


def _permute_square(hessian: Tensor, order: Tensor) -> Tensor:
    return hessian[order[:, None], order]


def _permute_columns(x: Tensor, order: Tensor) -> Tensor:
    return x.T[order].contiguous()


def _permute_scale(wide_scale: Tensor, order: Tensor) -> Tensor:
    """Return scales ``[N, K]`` as ``[K, N]``; expanded, without a copy, if all columns share them."""
    return wide_scale.T if wide_scale.stride(1) == 0 else _permute_columns(wide_scale, order)


def _run_ldlq(problems: Sequence[LdlqProblem], hessian: Tensor, check_cancelled: CheckCancelled) -> None:
    """Round all columns of all rows, from the last column to the first."""
    check_cancelled()
    factor = factorize(hessian)
    factor.div_(factor.diagonal().clone())
    run_all(partial(_round_columns, factor=factor, check_cancelled=check_cancelled), problems)


def _round_columns(problem: LdlqProblem, factor: Tensor, check_cancelled: CheckCancelled) -> None:
    errors = problem.errors
    for stop in range(len(factor), 0, -BLOCK):
        check_cancelled()
        columns = slice(max(0, stop - BLOCK), stop)
        targets = problem.weight[columns] - factor[stop:, columns].T @ errors[stop:]
        within = factor[columns, columns].T.contiguous()
        ldlq.ldlq_block(problem.column_block(columns), within, targets, errors[columns])


def _run_descent_pass(problems: Sequence[LdlqProblem], check_cancelled: CheckCancelled) -> float:
    """Run one pass of exact coordinate descent over all columns.

    Args:
        problems: The rows to round.
        check_cancelled: Called once per block.

    Returns:
        Share of the cost that the pass removed, each block's cost counted before the block was changed.
    """
    sums = run_all(partial(_descend, check_cancelled=check_cancelled), problems)
    cost, removed = (math.fsum(values) for values in zip(*sums, strict=True))
    return removed / cost if cost > 0 else 0.0


def _descend(problem: LdlqProblem, check_cancelled: CheckCancelled) -> tuple[float, float]:
    """Run one pass over the columns of some rows; returns their cost, and what was removed of it."""
    hessian, errors = problem.hessian, problem.errors
    cost, removed = hessian.new_zeros(()), hessian.new_zeros(())
    for columns in blocks(len(hessian), BLOCK):
        check_cancelled()
        within, before, gradient = hessian[columns, columns], errors[columns].clone(), hessian[columns] @ errors
        ldlq.descend_block(problem.column_block(columns), within, gradient.clone(), errors[columns])
        change = errors[columns] - before
        cost += (before * gradient).sum()
        removed -= (change * (2 * gradient + within @ change)).sum()
    return float(cost), float(removed)
