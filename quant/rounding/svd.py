"""Learned rounding against leading directions: those of the weight, ``||U_k^T (W_q - W) V_k||``, or of the inputs that
the layer really sees, ``||(W_q - W) V_k S_k||`` with ``X = U S V^T``.

The objective is always evaluated on the grid: the position that an optimizer moves is continuous, but every loss and
gradient is that of the codes it rounds to (a straight-through estimate, Bengio et al., arXiv 1308.3432), and the best
codes seen are the result. A code is one of the two grid points around its weight, so none moves by more than one step
from nearest; if no step improves on nearest, nearest is given back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import Format
from ..recipe import SvdSettings
from .ldlq import round_ldlq
from .nearest import round_nearest
from .optimizers import STEPPERS

OVERSAMPLING = 2
"""How many times k directions the randomized SVD looks for, the rest of which are dropped after it (Halko et al., arXiv
0909.4061, section 1.6). Weights have flat spectra: with k + 10 the space found is not the true leading one, in which
the error of a 1024 x 1024 layer then falls to 0.56 of nearest instead of 0.26 (`benchmarks/peer.py`)."""

FEEDBACK_DAMPING = 0.05
"""What error feedback is charged for directions outside V_k, relative to those inside; bounds the total error."""


@dataclass(frozen=True)
class Projection:
    """The objective: float32 ``weight [N, K]``, ``right [K, k]`` with orthogonal columns, the longest of length 1, and
    orthonormal ``left [N, k]``, or None for all outputs.
    """

    weight: Tensor
    left: Tensor | None
    right: Tensor

    def residual(self, rounded: Tensor) -> Tensor:
        """``U^T (W_q - W) V``, ``[k, k]``, or ``[N, k]`` for all outputs, of a dequantized weight."""
        right = (rounded - self.weight) @ self.right
        return right if self.left is None else self.left.T @ right

    def gradient(self, residual: Tensor) -> Tensor:
        """Gradient of half the squared objective with respect to the dequantized weight, ``[N, K]``."""
        wide = residual if self.left is None else self.left @ residual
        return wide @ self.right.T


@dataclass(frozen=True)
class SvdResult:
    """codes ``[N, K]``; the objective for the codes and for nearest rounding, relative to that of the weight itself."""

    codes: Tensor
    error: float
    nearest_error: float
    fell_back: bool


def round_svd(
    weight: Tensor,
    scale: Tensor,
    fmt: Format,
    settings: SvdSettings,
    check_cancelled: Callable[[], None] = lambda: None,
    *,
    seed: int = 0,
    inputs: Tensor | None = None,
) -> SvdResult:
    """Round float32 ``weight [N, K]`` with float32 ``scale`` (as `Format` shapes it) by the `svd` method.

    ``check_cancelled`` is called at every iteration and may raise to stop. ``seed`` is that of the randomized SVD.
    ``inputs``: float32 ``[R, K]`` in the basis that the weight is stored in; given, their directions count and not the
    weight's.
    """
    objective = project(weight, settings, seed) if inputs is None else project_inputs(weight, inputs, settings, seed)
    nearest = round_nearest(weight, scale, fmt)
    solve = _feedback if settings.optimizer == "feedback" else _descend
    codes = solve(objective, scale, fmt, settings, check_cancelled)
    size = max(float(objective.residual(torch.zeros_like(weight)).norm()), torch.finfo(torch.float32).tiny)
    error, nearest_error = (float(objective.residual(fmt.dequantize(c, scale)).norm()) / size for c in (codes, nearest))
    if error < nearest_error:
        return SvdResult(codes, error, nearest_error, fell_back=False)
    return SvdResult(nearest, nearest_error, nearest_error, fell_back=bool((codes.float() != nearest.float()).any()))


def project(weight: Tensor, settings: SvdSettings, seed: int = 0) -> Projection:
    """The objective of ``weight``: its k leading left and right singular vectors."""
    left, _, right = _leading(weight, settings.rank((weight.shape[0], weight.shape[1])), settings.full, seed)
    return Projection(weight, left, right)


def project_inputs(weight: Tensor, inputs: Tensor, settings: SvdSettings, seed: int = 0) -> Projection:
    """The objective of all outputs of ``weight [N, K]`` in the k leading directions of ``inputs [R, K]``, as heavy as
    inputs lie in them.
    """
    k = min(settings.rank((weight.shape[0], weight.shape[1])), *inputs.shape)
    _, sizes, right = _leading(inputs, k, settings.full, seed)
    return Projection(weight, None, right * (sizes / sizes[0].clamp(min=torch.finfo(sizes.dtype).tiny)))


def _leading(matrix: Tensor, k: int, full: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k leading left singular vectors, singular values and right singular vectors."""
    if full:
        left, sizes, right_t = torch.linalg.svd(matrix, full_matrices=False)
        right = right_t.T
    else:
        # It draws from the global generator, which belongs to the caller.
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(seed)
            left, sizes, right = torch.svd_lowrank(matrix, q=min(OVERSAMPLING * k, *matrix.shape), niter=2)
    return left[:, :k].contiguous(), sizes[:k], right[:, :k].contiguous()


def _descend(
    objective: Projection, scale: Tensor, fmt: Format, settings: SvdSettings, check_cancelled: Callable[[], None]
) -> Tensor:
    weight = objective.weight
    wide = fmt.granularity.expand(scale, (weight.shape[0], weight.shape[1]))
    scaled = weight / wide
    lower, upper = fmt.grid.below(scaled).mul_(wide), fmt.grid.above(scaled).mul_(wide)
    middle = (lower + upper).mul_(0.5)
    position = weight.clone()
    stepper = STEPPERS[settings.optimizer](position, upper - lower, settings.lr)
    rounded = fmt.dequantize(round_nearest(weight, scale, fmt), scale)
    best, best_loss, first_loss = rounded, float("inf"), 0.0
    for i in range(settings.iterations + 1):
        check_cancelled()
        residual = objective.residual(rounded)
        loss = float(residual.norm())
        first_loss = first_loss or loss
        if loss < best_loss:
            best, best_loss = rounded, loss
        if loss == 0.0 or i == settings.iterations:
            break
        stepper.step(objective.gradient(residual), loss / first_loss, i / settings.iterations)
        rounded = torch.where(position < middle, lower, upper)
    return round_nearest(best, scale, fmt)


def _feedback(
    objective: Projection, scale: Tensor, fmt: Format, settings: SvdSettings, check_cancelled: Callable[[], None]
) -> Tensor:
    right = objective.right
    metric = right @ right.T + FEEDBACK_DAMPING * torch.eye(right.shape[0], device=right.device)
    return round_ldlq(objective.weight, scale, fmt, metric, check_cancelled, adjacent=True)
