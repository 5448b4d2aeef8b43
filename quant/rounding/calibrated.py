"""Calibrated rounding: error feedback in the metric of the inputs that the layer really sees.

The metric is the damped second moment of a sample of input rows, so that what is made small is the error of the layer's
output. A sample can be learned by heart: `held_out` decides what of the result is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..formats import Format
from ..recipe import CalibratedSettings
from .ldlq import round_ldlq

SMALLEST_DAMPING = 1e-3
"""Of a sample that is found certain; below this, float32 hardly tells a wide layer's metric from a singular one."""

LEAST_GAIN = 0.02
"""Share of the cost that a pass of coordinate descent removes for another to follow: 1 % of the error."""


def round_calibrated(
    weight: Tensor,
    scale: Tensor,
    fmt: Format,
    inputs: Tensor,
    settings: CalibratedSettings,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Tensor:
    """Codes ``[N, K]`` for float32 ``weight [N, K]`` given float32 ``inputs [R, K]`` in the basis that it is stored in.

    ``check_cancelled`` is called often and may raise to stop.
    """
    metric = second_moment(inputs, settings.damping)
    return round_ldlq(weight, scale, fmt, metric, check_cancelled, passes=settings.passes, least_gain=LEAST_GAIN)


def second_moment(inputs: Tensor, damping: float | None = None) -> Tensor:
    """``X^T X`` of ``inputs [R, K]``, up to a factor, with ``damping`` times its mean diagonal added to it: positive
    definite, ``[K, K]``.

    None: as much as the sample is expected to be wrong by (Ledoit and Wolf, J. Multivariate Analysis 88, 2004, eq. 14).
    """
    tiny = torch.finfo(torch.float32).tiny
    # Its scale is free, so that squares neither overflow nor vanish.
    inputs = inputs / inputs.abs().amax().clamp(min=tiny)
    moment = (inputs.T @ inputs).div_(len(inputs))
    mean = moment.diagonal().mean().clamp(min=tiny)
    share = max(_uncertainty(moment, inputs), SMALLEST_DAMPING) if damping is None else damping
    moment.diagonal().add_(share * mean)
    return moment


def _uncertainty(moment: Tensor, inputs: Tensor) -> float:
    """How far the sample's second moment is expected to be from the true one, over how far that is from a multiple of
    the identity, both squared; from 0 to 1.
    """
    mean = float(moment.diagonal().mean()) or 1.0
    square = float((moment / mean).square_().sum())
    fourth = float((inputs.square().sum(dim=1) / mean).square_().mean())
    spread = square - len(moment)
    return min(1.0, max(0.0, (fourth - square) / len(inputs) / spread)) if spread > 0 else 1.0
