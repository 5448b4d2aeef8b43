"""Error feedback: round a layer's inputs one by one, each making up for the errors of those before it.

For the metric ``tr(E H E^T)`` with ``H = L D L^T``, L unit lower triangular, the cost is the sum over inputs of
``D_i ||E_i + sum_{j > i} E_j L_ji||^2``: rounded from the last input to the first, each input's best target is known
when its turn comes (LDLQ: Chee et al., arXiv 2307.13304, section 3, who show that it equals GPTQ, Frantar et al., arXiv
2210.17323). It needs one Cholesky factorization and no inverse. Inputs are handled in blocks, so that nearly all the
work is matrix products, and weights lie transposed here, ``[K, N]``, so that an input's weights are contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import Format
from ..grids import Grid

BLOCK = 128

FIRST_DAMPING = 1e-6
DAMPINGS = 7
"""What a singular metric's diagonal is raised by first, relative to its mean, and how often ten times more is tried."""

Tick = Callable[[], None]


@dataclass(frozen=True)
class Problem:
    """Everything by input, float32: weight and scale ``[K, N]``, metric ``[K, K]``, in the order of rounding reversed.

    adjacent: a code must be one of the two grid points around its weight.
    """

    weight: Tensor
    scale: Tensor
    metric: Tensor
    grid: Grid
    adjacent: bool

    def rounded(self, target: Tensor, i: int) -> Tensor:
        """The dequantized weights ``[N]`` of input ``i`` nearest to ``target [N]`` that the grid allows."""
        scale = self.scale[i]
        scaled = target / scale
        if self.adjacent:
            around = self.weight[i] / scale
            scaled = scaled.maximum(self.grid.below(around)).minimum(self.grid.above(around))
        return self.grid.encode(scaled).to(torch.float32).mul_(scale)


def round_feedback(
    weight: Tensor, scale: Tensor, fmt: Format, metric: Tensor, tick: Tick, *, adjacent: bool = False, passes: int = 0
) -> Tensor:
    """Codes for float32 ``weight [N, K]`` that make ``tr(E H E^T)`` small, E being the error of the dequantized weight.

    ``metric`` is H, float32 ``[K, K]``, symmetric positive definite. With ``adjacent`` no code moves by more than one
    step from nearest. ``passes`` of coordinate descent follow, each of which can only lower the cost. ``tick`` is
    called once a block. A metric that is singular in float32 is damped until it is not. Raises
    torch.linalg.LinAlgError for one that holds NaN.
    """
    shape = (weight.shape[0], weight.shape[1])
    # What matters most is rounded first, that is last in this order, while all the others can still make up for it.
    order = metric.diagonal().argsort()
    # Bound to the same name: of a metric as large as this, one copy less is held.
    metric = metric[order[:, None], order]
    wide = fmt.granularity.expand(scale, shape).expand(shape)
    problem = Problem(_by_input(weight, order), _by_input(wide, order), metric, fmt.grid, adjacent)
    errors = _feed_back(problem, tick)
    for _ in range(passes):
        _descend(problem, errors, tick)
    rounded = torch.empty_like(weight)
    rounded[:, order] = (problem.weight + errors).T
    return fmt.grid.encode(rounded.div_(wide))


def _by_input(x: Tensor, order: Tensor) -> Tensor:
    return x.T[order].contiguous()


def _feed_back(problem: Problem, tick: Tick) -> Tensor:
    """The errors ``[K, N]`` after rounding every input in turn, from the last to the first."""
    tick()
    unit = _factor(problem.metric)
    unit.div_(unit.diagonal().clone())
    errors = torch.zeros_like(problem.weight)
    for stop in range(len(unit), 0, -BLOCK):
        tick()
        block = slice(max(0, stop - BLOCK), stop)
        targets = problem.weight[block] - unit[stop:, block].T @ errors[stop:]
        within = unit[block, block].T.contiguous()
        for i in range(len(targets) - 1, -1, -1):
            k = block.start + i
            target = targets[i] - within[i, i + 1 :] @ errors[k + 1 : stop]
            errors[k] = problem.rounded(target, k) - problem.weight[k]
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


def _descend(problem: Problem, errors: Tensor, tick: Tick) -> None:
    """One pass of exact coordinate descent over all inputs; changes ``errors [K, N]`` in place."""
    metric, curvature = problem.metric, problem.metric.diagonal()
    for start in range(0, len(metric), BLOCK):
        tick()
        block = slice(start, min(start + BLOCK, len(metric)))
        gradient = metric[block] @ errors
        within = metric[block, block]
        for i in range(len(gradient)):
            k = start + i
            best = problem.weight[k] + errors[k] - gradient[i] / curvature[k]
            change = problem.rounded(best, k) - problem.weight[k] - errors[k]
            errors[k] += change
            gradient.addr_(within[:, i], change)
