"""LDLQ: round a weight column by column; later columns compensate for the errors of earlier ones (GPTQ order).

The cost of a rounding error E is ``tr(E H E^T)``. With ``H = L D L^T``, L unit lower triangular, it is the sum over
columns of ``D_i ||E_i + sum_{j > i} E_j L_ji||^2``: rounded from the last column to the first, each column's best
target is known when its turn comes (LDLQ: Chee et al., arXiv 2307.13304, section 3, who show that it equals GPTQ,
Frantar et al., arXiv 2210.17323). It takes one Cholesky factorization and no inverse.

Columns are handled in blocks, so that nearly all the work is matrix products; a kernel of `kernels.ldlq` does the rest.
Weights are transposed here, ``[K, N]``, so that a column is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import ldlq
from ...kernels.errors import KernelError
from ..errors import RecipeError
from ..formats import ScaledFormat
from ..formats.grids import Grid

BLOCK = 128

FIRST_DAMPING = 1e-6
DAMPINGS = 7
"""Damping tried first on a Hessian that has no Cholesky factor, relative to its mean diagonal, and how many times it is
tried, ten times larger each time."""

CheckCancelled = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class LdlqProblem:
    """A weight to round: transposed, float32, columns in reverse order of rounding."""

    weight: Tensor
    """Float weights ``[K, N]``."""

    scale: Tensor
    """Scales ``[K, N]``, expanded if all columns share them."""

    hessian: Tensor
    """``[K, K]``."""

    grid: Grid

    adjacent: bool
    """Whether a code must be one of the two grid points around its weight."""

    def column_block(self, columns: slice) -> ldlq.ColumnBlock:
        """Return a block of columns as the kernels take it."""
        weight, scale = self.weight[columns], self.scale[columns]
        limits = None
        if self.adjacent:
            scaled = weight / scale
            limits = self.grid.below(scaled), self.grid.above(scaled)
        return ldlq.ColumnBlock(weight=weight, scale=scale, grid=self.grid, limits=limits)


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
    permuted = hessian[order[:, None], order]
    if overwrite_hessian:
        permuted = hessian.copy_(permuted)
    wide_scale = _permute_scale(scale, fmt, weight, order)
    problem = LdlqProblem(
        weight=_permute_columns(weight, order),
        scale=wide_scale,
        hessian=permuted,
        grid=fmt.grid,
        adjacent=adjacent,
    )
    try:
        errors = _run_ldlq(problem, check_cancelled)
        for _ in range(passes):
            if _run_descent_pass(problem, errors, check_cancelled) < least_gain:
                break
    except KernelError as error:
        raise RecipeError(str(error)) from None
    codes = fmt.grid.encode(errors.add_(problem.weight).div_(wide_scale))
    result = torch.empty_like(weight, dtype=codes.dtype)
    # Indexed as bytes: torch cannot index every 8-bit float dtype.
    result.view(torch.uint8)[:, order] = codes.view(torch.uint8).T
    return result


def _estimate_column_costs(weight: Tensor, scale: Tensor, fmt: ScaledFormat, hessian: Tensor) -> Tensor:
    """Return the expected cost of rounding each column alone, up to a factor, ``[K]``.

    Large weights lie on a coarser grid in floating point, so columns differ by more than the Hessian's diagonal.
    """
    wide_scale = fmt.granularity.expand(scale, (weight.shape[0], weight.shape[1]))
    steps = fmt.grid.spacing(weight / wide_scale).mul_(wide_scale)
    return steps.square_().mean(dim=0).mul_(hessian.diagonal())


def _permute_columns(x: Tensor, order: Tensor) -> Tensor:
    return x.T[order].contiguous()


def _permute_scale(scale: Tensor, fmt: ScaledFormat, weight: Tensor, order: Tensor) -> Tensor:
    """Return the scales as ``[K, N]``; expanded, without a copy, if all columns share them."""
    shape = (weight.shape[0], weight.shape[1])
    wide_scale = fmt.granularity.expand(scale, shape).expand(shape)
    return wide_scale.T if wide_scale.stride(1) == 0 else _permute_columns(wide_scale, order)


def _run_ldlq(problem: LdlqProblem, check_cancelled: CheckCancelled) -> Tensor:
    """Round all columns, from the last to the first.

    Returns:
        Rounded minus float weights, ``[K, N]``.
    """
    check_cancelled()
    factor = _factorize(problem.hessian)
    factor.div_(factor.diagonal().clone())
    errors = torch.zeros_like(problem.weight)
    for stop in range(len(factor), 0, -BLOCK):
        check_cancelled()
        columns = slice(max(0, stop - BLOCK), stop)
        targets = problem.weight[columns] - factor[stop:, columns].T @ errors[stop:]
        within = factor[columns, columns].T.contiguous()
        ldlq.ldlq_block(problem.column_block(columns), within, targets, errors[columns])
    return errors


def _factorize(hessian: Tensor) -> Tensor:
    """Return the lower Cholesky factor ``[K, K]``; damps the Hessian in place as long as it has none."""
    damping = FIRST_DAMPING * float(hessian.diagonal().mean())
    factor: Tensor
    for _ in range(DAMPINGS):
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            return factor
        hessian.diagonal().add_(damping)
        damping *= 10
    factor = torch.linalg.cholesky(hessian)
    return factor


def _run_descent_pass(problem: LdlqProblem, errors: Tensor, check_cancelled: CheckCancelled) -> float:
    """Run one pass of exact coordinate descent over all columns.

    Args:
        problem: The weight to round.
        errors: Rounded minus float weights, ``[K, N]``; updated in place.
        check_cancelled: Called once per block.

    Returns:
        Share of the cost that the pass removed, each block's cost counted before the block was changed.
    """
    hessian = problem.hessian
    cost, removed = hessian.new_zeros(()), hessian.new_zeros(())
    for start in range(0, len(hessian), BLOCK):
        check_cancelled()
        columns = slice(start, min(start + BLOCK, len(hessian)))
        within, before, gradient = hessian[columns, columns], errors[columns].clone(), hessian[columns] @ errors
        ldlq.descend_block(problem.column_block(columns), within, gradient.clone(), errors[columns])
        change = errors[columns] - before
        cost += (before * gradient).sum()
        removed -= (change * (2 * gradient + within @ change)).sum()
    return float(removed / cost) if cost > 0 else 0.0
