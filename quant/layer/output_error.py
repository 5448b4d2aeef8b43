"""The error of a layer's output on inputs that nothing was learned from: what every rounding is judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .activations import Inputs

CERTAINTY = 3.0
"""By how many standard errors a weight row's held-out error must be below another's; less could be chance."""


@dataclass(frozen=True)
class OutputError:
    """Relative errors of a layer's output, ||Y_q - Y|| / ||Y||, and its power, the mean over inputs of ||Y||^2.

    w8a16: with the inputs as they are (W8A16). w8a8: with inputs rounded as the host's 8-bit product has them
    (W8A8).
    """

    w8a16: float
    w8a8: float
    power: float


@dataclass(frozen=True)
class Validator:
    """Held-out inputs of a layer and its float ``weight [N, K]``, in the basis that it is stored in."""

    weight: Tensor
    inputs: Inputs

    def squares(self, rounded: Tensor) -> Tensor:
        """Squared errors ``[R, N]`` of the output with float inputs, for a dequantized weight ``[N, K]``."""
        return (self.inputs.rows @ (rounded - self.weight).T).square_()

    def error(self, rounded: Tensor) -> OutputError:
        """What a dequantized weight ``[N, K]`` costs."""
        wanted = self.inputs.rows @ self.weight.T
        power = float(wanted.square().sum(dtype=torch.float64))
        run = (self.inputs.fed @ rounded.T).sub_(wanted).square_()
        errors = (float(squares.sum(dtype=torch.float64)) for squares in (self.squares(rounded), run))
        w8a16, w8a8 = (math.sqrt(error / power) if power > 0 else 0.0 for error in errors)
        return OutputError(w8a16, w8a8, power / len(self.inputs))


def significantly_lower(squares: Tensor, others: Tensor) -> Tensor:
    """For which columns the mean of ``squares [R, N]`` is below that of ``others``, beyond doubt (a paired test),
    ``[N]``.
    """
    difference = squares - others
    doubt = difference.std(dim=0, correction=0) / len(difference) ** 0.5
    return difference.mean(dim=0).lt(-CERTAINTY * doubt)
