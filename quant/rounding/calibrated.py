"""Calibrated rounding: error feedback in the metric of the inputs that the layer really sees.

The metric is the damped second moment of a sample of input rows, so that what is made small is the error of the layer's
output. A sample can be learned by heart: `held_out` decides what of the result is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RecipeError
from ..formats import Format
from .feedback import round_feedback


@dataclass(frozen=True)
class CalibratedSettings:
    """damping: added to the metric's diagonal, relative to its mean. held_out: share of the sample that decides.

    passes: of coordinate descent after the error feedback.
    """

    damping: float = 0.03
    held_out: float = 0.125
    passes: int = 1

    def __post_init__(self) -> None:
        checks = {
            "damping": (self.damping > 0, "above 0"),
            "held_out": (0 < self.held_out < 1, "between 0 and 1"),
            "passes": (self.passes >= 0, "0 or more"),
        }
        for name, (fine, range_text) in checks.items():
            if not fine:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be {range_text}.")


def round_calibrated(
    weight: Tensor,
    scale: Tensor,
    fmt: Format,
    inputs: Tensor,
    settings: CalibratedSettings,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Codes ``[N, K]`` for float32 ``weight [N, K]`` given float32 ``inputs [R, K]`` in the basis that it is stored in.

    ``tick`` is called often and may raise to stop.
    """
    return round_feedback(weight, scale, fmt, second_moment(inputs, settings.damping), tick, passes=settings.passes)


def second_moment(inputs: Tensor, damping: float) -> Tensor:
    """``X^T X / R`` of ``inputs [R, K]``, its diagonal raised by ``damping`` times its mean: positive definite, ``[K,
    K]``.
    """
    moment = (inputs.T @ inputs).div_(len(inputs))
    mean = moment.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    moment.diagonal().add_(damping * mean)
    return moment
