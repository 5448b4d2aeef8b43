"""Learned rounding against leading singular directions, of the weight or of the calibration rows.

For a weight's own directions the objective is ``||U_k^T (W_q - W) V_k||``; for directions of recorded inputs
``X = U S V^T`` it is ``||(W_q - W) V_k S_k||``. It is always evaluated on the grid: an optimizer moves a continuous
position, but every loss and gradient is taken at the codes that the position rounds to (straight-through estimate,
Bengio et al., arXiv 1308.3432), and the best codes seen are the result. A code is one of the two grid points around its
weight. Codes that do not improve on nearest are discarded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..formats import Format, Scale
from ..parallel import matmul
from ..recipe import SvdSettings
from .by_ldlq import round_by_ldlq
from .nearest import round_nearest
from .optimizers import make_stepper

OVERSAMPLING = 2
"""Number of directions that the randomized SVD computes, in multiples of k; the rest are dropped (Halko et al., arXiv
0909.4061, section 1.6). Weights have flat spectra: k + 10 directions miss the true leading subspace, in which the error
of a 1024 x 1024 layer then falls to 0.56 of nearest instead of 0.26 (`benchmarks/convert_to_quant.py`)."""

ITERATIONS = 2
"""Subspace iterations of the randomized SVD."""

LDLQ_DAMPING = 0.05
"""Hessian of the optimizer `feedback` outside the leading directions, relative to inside; bounds the total error."""


@dataclass(frozen=True)
class Projection:
    """The objective: the weight error, projected on leading directions."""

    weight: Tensor
    """Float weight, float32 ``[N, K]``."""

    left: Tensor | None
    """Orthonormal columns ``[N, k]``; None: all output channels count."""

    right: Tensor
    """Orthogonal columns ``[K, k]``, the longest of length 1."""

    def project_error(self, rounded: Tensor) -> Tensor:
        """Return ``U^T (W_q - W) V`` of a dequantized weight: ``[k, k]``, or ``[N, k]`` without ``left``."""
        right = matmul(rounded - self.weight, self.right)
        return right if self.left is None else matmul(self.left.T, right)

    def compute_gradient(self, projected: Tensor) -> Tensor:
        """Return the gradient ``[N, K]`` of half the squared objective, from a projected error."""
        wide = projected if self.left is None else matmul(self.left, projected)
        return matmul(wide, self.right.T)


@dataclass(frozen=True, kw_only=True)
class SvdResult:
    """Codes and their error on the leading directions."""

    codes: Tensor
    """``[N, K]`` in the format's code dtype."""

    error: float
    """Norm of the projected error, relative to the projected weight."""

    nearest_error: float
    """The same for nearest rounding."""

    fell_back: bool
    """Whether learned codes were discarded for nearest ones."""


def round_svd(
    weight: Tensor,
    scale: Any,
    fmt: Format,
    settings: SvdSettings,
    check_cancelled: Callable[[], None] = lambda: None,
    *,
    seed: int = 0,
    inputs: Tensor | None = None,
) -> SvdResult:
    """Round a weight so that its error in the leading directions is small.

    Args:
        weight: Float weight, float32 ``[N, K]``.
        scale: Scales of nearest rounding, as the format shapes them; they stay.
        fmt: The format.
        settings: Optimizer, number of directions and kind of SVD.
        check_cancelled: Called at every iteration; may raise to stop.
        seed: Seed of the randomized SVD.
        inputs: Calibration rows, float32 ``[R, K]``, padded and rotated as the weight is. None: the weight's own
            directions count.

    Raises:
        RecipeError: The optimizer's package is not installed, or the selected kernel backend cannot run.
    """
    if inputs is None:
        projection = project_weight(weight, settings, seed)
    else:
        projection = project_inputs(weight, inputs, settings, seed)
    nearest = round_nearest(weight, scale, fmt)
    solve = _solve_ldlq if settings.optimizer == "feedback" else _optimize
    codes = solve(projection, scale, fmt, settings, check_cancelled)

    def norm(rounded: Tensor) -> float:
        # In float64: squares of float32 values overflow above 1.8e19.
        return float(projection.project_error(rounded).norm(dtype=torch.float64))

    size = max(norm(torch.zeros_like(weight)), torch.finfo(torch.float32).tiny)
    error, nearest_error = (norm(fmt.dequantize(c, scale)) / size for c in (codes, nearest))
    if error < nearest_error:
        return SvdResult(codes=codes, error=error, nearest_error=nearest_error, fell_back=False)
    fell_back = bool((codes.float() != nearest.float()).any())
    return SvdResult(codes=nearest, error=nearest_error, nearest_error=nearest_error, fell_back=fell_back)


def project_weight(weight: Tensor, settings: SvdSettings, seed: int = 0) -> Projection:
    """Project on the k leading left and right singular vectors of a weight.

    Args:
        weight: Float weight, float32 ``[N, K]``.
        settings: Number of directions and kind of SVD.
        seed: Seed of the randomized SVD.
    """
    left, _, right = _compute_leading(weight, settings.rank((weight.shape[0], weight.shape[1])), settings.full, seed)
    return Projection(weight, left, right)


def project_inputs(weight: Tensor, inputs: Tensor, settings: SvdSettings, seed: int = 0) -> Projection:
    """Project all output channels on the k leading directions of calibration rows, weighted by singular value.

    Args:
        weight: Float weight, float32 ``[N, K]``.
        inputs: Calibration rows, float32 ``[R, K]``.
        settings: Number of directions and kind of SVD.
        seed: Seed of the randomized SVD.
    """
    k = min(settings.rank((weight.shape[0], weight.shape[1])), *inputs.shape)
    _, sizes, right = _compute_leading(inputs, k, settings.full, seed)
    return Projection(weight, None, right * (sizes / sizes[0].clamp(min=torch.finfo(sizes.dtype).tiny)))


def _compute_leading(matrix: Tensor, k: int, full: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k leading left singular vectors, singular values and right singular vectors."""
    if full:
        left, sizes, right_t = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :k].contiguous(), sizes[:k], right_t[:k].T.contiguous()
    return _compute_randomized(matrix, k, seed)


def _compute_randomized(matrix: Tensor, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same by randomized subspace iteration (Halko et al., arXiv 0909.4061, algorithms 4.4 and 5.1).

    The small matrix is decomposed by the eigenvectors of its Gram matrix. Singular values below 1e-4 of the largest are
    lost in it; a weight's k leading ones are far above.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(matrix.shape[1], min(OVERSAMPLING * k, *matrix.shape), generator=generator)
    basis, _ = torch.linalg.qr(matmul(matrix, draws.to(matrix.device)))
    for _ in range(ITERATIONS):
        basis, _ = torch.linalg.qr(matmul(matrix.T, basis))
        basis, _ = torch.linalg.qr(matmul(matrix, basis))
    small = matmul(basis.T, matrix)
    values, vectors = torch.linalg.eigh(matmul(small, small.T))
    leading = vectors[:, -k:].flip(1)
    # Orthonormal also where the matrix has fewer directions than k.
    right, _ = torch.linalg.qr(matmul(small.T, leading))
    return matmul(basis, leading), values[-k:].flip(0).clamp(min=0).sqrt(), right


def _optimize(
    projection: Projection, scale: Scale, fmt: Format, settings: SvdSettings, check_cancelled: Callable[[], None]
) -> Tensor:
    """Search codes with one of the `optimizers`; returns the best ones seen."""
    weight = projection.weight
    lower, upper = fmt.neighbours(weight, scale)
    middle = (lower + upper).mul_(0.5)
    position = weight.clone()
    stepper = make_stepper(settings.optimizer, position, upper - lower, settings.lr)
    rounded = fmt.dequantize(round_nearest(weight, scale, fmt), scale)
    best, best_loss, first_loss = rounded, float("inf"), 0.0
    for i in range(settings.iterations + 1):
        check_cancelled()
        projected = projection.project_error(rounded)
        loss = float(projected.norm())
        first_loss = first_loss or loss
        if loss < best_loss:
            best, best_loss = rounded, loss
        if loss == 0.0 or i == settings.iterations:
            break
        stepper.step(projection.compute_gradient(projected), loss / first_loss, i / settings.iterations)
        rounded = torch.where(position < middle, lower, upper)
    return round_nearest(best, scale, fmt)


def _solve_ldlq(
    projection: Projection, scale: Scale, fmt: Format, settings: SvdSettings, check_cancelled: Callable[[], None]
) -> Tensor:
    """Round by LDLQ with the Hessian ``V V^T + damping``: the optimizer `feedback`."""
    hessian = matmul(projection.right, projection.right.T)
    hessian.diagonal().add_(LDLQ_DAMPING)
    return round_by_ldlq(projection.weight, scale, fmt, hessian, check_cancelled, bound=True)[0]
