"""Error feedback: round a layer's inputs one by one, each making up for the errors of those before it.

For the metric ``tr(E H E^T)`` with ``H = L D L^T``, L unit lower triangular, the cost is the sum over inputs of
``D_i ||E_i + sum_{j > i} E_j L_ji||^2``: rounded from the last input to the first, each input's best target is known
when its turn comes (LDLQ: Chee et al., arXiv 2307.13304, section 3, who show that it equals GPTQ, Frantar et al., arXiv
2210.17323). It needs one Cholesky factorization and no inverse. Inputs are handled in blocks, so that nearly all the
work is matrix products, and weights lie transposed here, ``[K, N]``, so that an input's weights are contiguous. What is
left within a block is one of the pack's kernels, or plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..formats import Format
from ..formats.grids import Grid
from . import kernels

BLOCK = 128

FIRST_DAMPING = 1e-6
DAMPINGS = 7
"""What a singular metric's diagonal is raised by first, relative to its mean, and how often ten times more is tried."""

CheckCancelled = Callable[[], None]


@dataclass(frozen=True)
class Problem:
    """Everything by input, float32: weight and scale ``[K, N]``, metric ``[K, K]``, in the order of rounding reversed.

    The scale is expanded where all inputs share it. adjacent: a code must be one of the two grid points around its
    weight.
    """

    weight: Tensor
    scale: Tensor
    metric: Tensor
    grid: Grid
    adjacent: bool

    def inputs(self, block: slice, within: Tensor) -> Any:
        """A block of inputs as the kernels take it."""
        weight, scale = self.weight[block], self.scale[block]
        return kernels.feedback().Inputs(weight, scale, within, self.grid, self._limits(weight, scale))

    def _limits(self, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.adjacent:
            return None
        around = weight / scale
        return self.grid.below(around), self.grid.above(around)


def round_ldlq(
    weight: Tensor,
    scale: Tensor,
    fmt: Format,
    metric: Tensor,
    check_cancelled: CheckCancelled,
    *,
    adjacent: bool = False,
    passes: int = 0,
    least_gain: float = 0.0,
) -> Tensor:
    """Codes for float32 ``weight [N, K]`` that make ``tr(E H E^T)`` small, E being the error of the dequantized weight.

    ``metric`` is H, float32 ``[K, K]``, symmetric positive definite. With ``adjacent`` no code moves by more than one
    step from nearest. Up to ``passes`` of coordinate descent follow, each of which can only lower the cost; the last is
    the one that lowers it by less than ``least_gain`` of what it was. ``check_cancelled`` is called once a block. A
    metric that is singular in float32 is damped until it is not. Raises torch.linalg.LinAlgError for one that holds
    NaN, and RecipeError if the kernel backend that was chosen cannot run.
    """
    # What matters most is rounded first, that is last in this order, while all the others can still make up for it.
    order = _importance(weight, scale, fmt, metric).argsort()
    # Bound to the same name: of a metric as large as this, one copy less is held.
    metric = metric[order[:, None], order]
    wide = _scale_by_input(scale, fmt, weight, order)
    problem = Problem(_by_input(weight, order), wide, metric, fmt.grid, adjacent)
    with kernels.user_errors():
        errors = _feed_back(problem, check_cancelled)
        for _ in range(passes):
            if _descend(problem, errors, check_cancelled) < least_gain:
                break
    codes = fmt.grid.encode(errors.add_(problem.weight).div_(wide))
    rounded = torch.empty_like(weight, dtype=codes.dtype)
    # By bytes, as not every 8-bit float dtype can be indexed.
    rounded.view(torch.uint8)[:, order] = codes.view(torch.uint8).T
    return rounded


def _importance(weight: Tensor, scale: Tensor, fmt: Format, metric: Tensor) -> Tensor:
    """What rounding each input alone is expected to cost, up to a factor, ``[K]``: in floating point, large weights lie
    on a coarser grid.
    """
    wide = fmt.granularity.expand(scale, (weight.shape[0], weight.shape[1]))
    steps = fmt.grid.spacing(weight / wide).mul_(wide)
    return steps.square_().mean(dim=0).mul_(metric.diagonal())


def _by_input(x: Tensor, order: Tensor) -> Tensor:
    return x.T[order].contiguous()


def _scale_by_input(scale: Tensor, fmt: Format, weight: Tensor, order: Tensor) -> Tensor:
    """``[K, N]``, which takes no memory where all inputs share their scale."""
    shape = (weight.shape[0], weight.shape[1])
    wide = fmt.granularity.expand(scale, shape).expand(shape)
    return wide.T if wide.stride(1) == 0 else _by_input(wide, order)


def _feed_back(problem: Problem, check_cancelled: CheckCancelled) -> Tensor:
    """The errors ``[K, N]`` after rounding every input in turn, from the last to the first."""
    check_cancelled()
    unit = _factor(problem.metric)
    unit.div_(unit.diagonal().clone())
    errors = torch.zeros_like(problem.weight)
    for stop in range(len(unit), 0, -BLOCK):
        check_cancelled()
        block = slice(max(0, stop - BLOCK), stop)
        targets = problem.weight[block] - unit[stop:, block].T @ errors[stop:]
        inputs = problem.inputs(block, unit[block, block].T.contiguous())
        kernels.feedback().feed_back(inputs, targets, errors[block])
    return errors


def _factor(metric: Tensor) -> Tensor:
    """The lower Cholesky factor; the metric's diagonal is raised in place for as long as there is none."""
    step = FIRST_DAMPING * float(metric.diagonal().mean())
    factor: Tensor
    for _ in range(DAMPINGS):
        factor, failed = torch.linalg.cholesky_ex(metric)
        if not failed:
            return factor
        metric.diagonal().add_(step)
        step *= 10
    factor = torch.linalg.cholesky(metric)
    return factor


def _descend(problem: Problem, errors: Tensor, check_cancelled: CheckCancelled) -> float:
    """One pass of exact coordinate descent over all inputs; changes ``errors [K, N]`` in place.

    Gives the share of the cost that it removed, of the cost as each block found it.
    """
    metric = problem.metric
    cost, removed = metric.new_zeros(()), metric.new_zeros(())
    for start in range(0, len(metric), BLOCK):
        check_cancelled()
        block = slice(start, min(start + BLOCK, len(metric)))
        within, before, slopes = metric[block, block], errors[block].clone(), metric[block] @ errors
        kernels.feedback().descend(problem.inputs(block, within), slopes.clone(), errors[block])
        moved = errors[block] - before
        cost += (before * slopes).sum()
        removed -= (moved * (2 * slopes + within @ moved)).sum()
    return float(removed / cost) if cost > 0 else 0.0
