"""Calibrated rounding: error feedback in the metric of the inputs that the layer really sees, judged on held-out
inputs.

The metric is the damped second moment of a sample of input rows, so that what is made small is the error of the layer's
output. A sample can be learned by heart; so part of it is held out, and each row of the weight takes the calibrated
codes only if they are better there, else the nearest ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RecipeError
from ..formats import Format
from .feedback import round_feedback
from .nearest import round_nearest

FEWEST_ROWS = 8
"""Fewer input rows than this are no sample: nearest rounding it is."""

CERTAINTY = 3.0
"""By how many standard errors a weight row's held-out error must be below nearest's; less could be chance."""


@dataclass(frozen=True)
class CalibratedSettings:
    """damping: added to the metric's diagonal, relative to its mean. held_out: share of the sample that decides.

    passes: of coordinate descent after the error feedback.
    """

    damping: float = 0.01
    held_out: float = 0.25
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


@dataclass(frozen=True)
class CalibratedResult:
    """codes ``[N, K]``; output error on held-out inputs, ||X (W_q - W)^T|| / ||X W^T||, of the codes and of nearest.

    rows_given_back: rows of the weight that kept the nearest codes.
    """

    codes: Tensor
    error: float
    nearest_error: float
    rows_given_back: int


def round_calibrated(
    weight: Tensor,
    scale: Tensor,
    fmt: Format,
    inputs: Tensor,
    settings: CalibratedSettings,
    tick: Callable[[], None] = lambda: None,
) -> CalibratedResult:
    """Round float32 ``weight [N, K]`` given float32 ``inputs [R, K]``, in the basis that the weight is stored in.

    ``tick`` is called often and may raise to stop.
    """
    nearest = round_nearest(weight, scale, fmt)
    if len(inputs) < FEWEST_ROWS:
        return CalibratedResult(nearest, 0.0, 0.0, len(weight))
    split = max(1, round(len(inputs) * settings.held_out))
    held_out, learned = inputs[:split], inputs[split:]
    metric = second_moment(learned, settings.damping)
    codes = round_feedback(weight, scale, fmt, metric, tick, passes=settings.passes)
    squares, nearest_squares = ((held_out @ (fmt.dequantize(c, scale) - weight).T).square_() for c in (codes, nearest))
    better = _surely_less(squares, nearest_squares)
    kept = torch.where(better, squares, nearest_squares)
    size = (held_out @ weight.T).norm().clamp(min=torch.finfo(torch.float32).tiny)
    return CalibratedResult(
        # Selecting by bytes, as not every 8-bit float dtype can be selected by `where`.
        torch.where(better[:, None], codes.view(torch.uint8), nearest.view(torch.uint8)).view(codes.dtype),
        float(kept.sum().sqrt() / size),
        float(nearest_squares.sum().sqrt() / size),
        int((~better).sum()),
    )


def _surely_less(squares: Tensor, others: Tensor) -> Tensor:
    """For which columns the mean of ``squares [R, N]`` is below that of ``others``, beyond doubt (a paired test),
    ``[N]``.
    """
    difference = squares - others
    doubt = difference.std(dim=0, correction=0) / len(difference) ** 0.5
    return difference.mean(dim=0).lt(-CERTAINTY * doubt)


def second_moment(inputs: Tensor, damping: float) -> Tensor:
    """``X^T X / R`` of ``inputs [R, K]``, its diagonal raised by ``damping`` times its mean: positive definite, ``[K,
    K]``.
    """
    moment = (inputs.T @ inputs).div_(len(inputs))
    mean = moment.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    moment.diagonal().add_(damping * mean)
    return moment
