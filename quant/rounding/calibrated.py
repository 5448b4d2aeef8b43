"""Calibrated rounding: LDLQ, then coordinate descent, against the Hessian of recorded calibration rows.

The error that is minimized is the layer's output error. Codes can overfit the calibration rows, so held-out rows decide
later which of them are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..formats import Format, Scale
from ..parallel import BLOCK, blocks, run_all
from ..recipe import CalibratedSettings
from .by_ldlq import round_by_ldlq

SMALLEST_DAMPING = 1e-3
"""Least damping that is chosen automatically: below it, a wide layer's Hessian is nearly singular in float32."""

TEXT_DAMPING = 0.1
"""The same for text encoders. They meet prompts of other kinds than the recorded ones, which no recorded row can tell;
with this damping they come closer on those, and on average as close or closer on prompts of the recorded kind."""

LEAST_GAIN = 0.02
"""Share of the cost that a pass of coordinate descent must remove for another to follow: 1 % of the error."""


def round_calibrated(
    weight: Tensor,
    scale: Any,
    fmt: Format,
    inputs: Tensor,
    settings: CalibratedSettings,
    check_cancelled: Callable[[], None] = lambda: None,
    *,
    least_damping: float = SMALLEST_DAMPING,
) -> tuple[Tensor, Scale]:
    """Round a weight so that the layer's output error on the calibration rows is small (W8A16).

    Args:
        weight: Float weight, float32 ``[N, K]``.
        scale: Scales of nearest rounding, as the format shapes them.
        fmt: The format.
        inputs: Calibration rows, float32 ``[R, K]``, padded and rotated as the weight is.
        settings: Damping and the maximum number of passes.
        check_cancelled: Called once per block of columns; may raise to stop.
        least_damping: Least damping where the settings give none.

    Returns:
        Codes ``[N, K]`` in the format's code dtype, and their scales: other ones than nearest's if groups have scales.

    Raises:
        RecipeError: The selected kernel backend is unknown or cannot run.
    """
    hessian = estimate_hessian(inputs, settings.damping, least=least_damping)
    return round_by_ldlq(weight, scale, fmt, hessian, check_cancelled, passes=settings.passes, least_gain=LEAST_GAIN)


def estimate_hessian(inputs: Tensor, damping: float | None = None, *, least: float = SMALLEST_DAMPING) -> Tensor:
    """Estimate a layer's Hessian ``X^T X / n + damping`` up to a factor, which rounding does not depend on.

    Args:
        inputs: Calibration rows X, float32 ``[R, K]``.
        damping: Relative to the mean of the diagonal. None: the expected relative error of the sample's second moment
            (Ledoit and Wolf, J. Multivariate Analysis 88, 2004, eq. 14).
        least: Least damping where none is given.

    Returns:
        Float32 ``[K, K]``, symmetric positive definite.
    """
    tiny = torch.finfo(torch.float32).tiny
    # The factor is free, so inputs are scaled to at most 1: squares neither overflow nor vanish.
    inputs = inputs / inputs.abs().amax().clamp(min=tiny)
    hessian = compute_gram(inputs).div_(len(inputs))
    mean = hessian.diagonal().mean().clamp(min=tiny)
    share = max(_estimate_damping(hessian, inputs), least) if damping is None else damping
    hessian.diagonal().add_(share * mean)
    return hessian


def compute_gram(inputs: Tensor) -> Tensor:
    """Return ``X^T X`` of rows X ``[R, K]``; on the CPU in blocks, of which the lower half is computed."""
    if inputs.device.type != "cpu":
        return inputs.T @ inputs
    gram = inputs.new_empty(inputs.shape[1], inputs.shape[1])

    def multiply(columns: slice) -> None:
        torch.mm(inputs[:, columns].T, inputs[:, : columns.stop], out=gram[columns, : columns.stop])
        gram[: columns.start, columns] = gram[columns, : columns.start].T

    run_all(multiply, blocks(len(gram), BLOCK)[::-1])
    return gram


def _estimate_damping(moment: Tensor, inputs: Tensor) -> float:
    """Estimate how far the sample's second moment is from the true one, by Ledoit and Wolf.

    Returns:
        The expected squared distance, relative to the moment's squared distance from a multiple of the identity: from 0
        to 1.
    """
    mean = float(moment.diagonal().mean()) or 1.0
    square = float((moment / mean).square_().sum())
    fourth = float((inputs.square().sum(dim=1) / mean).square_().mean())
    spread = square - len(moment)
    return min(1.0, max(0.0, (fourth - square) / len(inputs) / spread)) if spread > 0 else 1.0
