"""Output errors on held-out rows, from which nothing is learned. Every rounding method is judged by them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .activations import InputRows
from .layer_errors import relative_error, square_sum


@dataclass(frozen=True)
class OutputErrors:
    """Relative errors of a layer's output, ``||Y_q - Y|| / ||Y||``."""

    w8a16: float
    """With inputs in float."""
    w8a8: float
    """With inputs quantized as ComfyUI quantizes them."""
    power: float
    """Mean over rows of ``||y||^2``, of the float layer."""


@dataclass(frozen=True)
class Validator:
    """Compares a quantized weight with the float one, both in the basis that the weight is stored in."""

    weight: Tensor
    """float32 ``[N, K]``."""
    rows: InputRows
    """Held-out rows, ``[R, K]``."""

    @cached_property
    def reference(self) -> Tensor:
        """The float layer's output, ``[R, N]``."""
        return self.rows.rows @ self.weight.T

    @cached_property
    def square(self) -> float:
        """Sum of squares of `reference`."""
        return square_sum(self.reference)

    def squared_errors(self, dequantized: Tensor) -> Tensor:
        """Squared output errors with inputs in float, float64 ``[R, N]``, of a dequantized weight ``[N, K]``."""
        return (self.rows.rows @ (dequantized - self.weight).T).to(torch.float64).square_()

    def measure(self, dequantized: Tensor) -> OutputErrors:
        """Output errors of a dequantized weight ``[N, K]``."""
        w8a16 = float(self.squared_errors(dequantized).sum())
        w8a8 = square_sum((self.rows.quantized @ dequantized.T).sub_(self.reference))
        power = self.square / len(self.rows)
        return OutputErrors(relative_error(w8a16, self.square), relative_error(w8a8, self.square), power)
