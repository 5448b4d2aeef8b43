"""Output errors on held-out rows, from which nothing is learned. Every rounding method is judged by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..parallel import BLOCK, cpu_blocks, run_all
from .activations import InputRows
from .layer_errors import relative_error, square_sum


@dataclass(frozen=True, kw_only=True)
class OutputErrors:
    """Relative errors of a layer's output, ``||Y_q - Y|| / ||Y||``."""

    w8a16: float
    """With inputs in float."""
    w8a8: float
    """With inputs quantized as ComfyUI quantizes them."""
    power: float
    """Mean over rows of ``||y||^2``, of the float layer."""
    squares: Tensor
    """Squared error of each row's output with inputs quantized, float64 ``[R]``."""


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
        return self._multiply(lambda part: self.weight[part], self.rows.rows)

    @cached_property
    def square(self) -> float:
        """Sum of squares of `reference`."""
        return square_sum(self.reference)

    def squared_errors(self, dequantized: Tensor) -> Tensor:
        """Squared output errors with inputs in float, float64 ``[R, N]``, of a dequantized weight ``[N, K]``."""
        errors = self._multiply(lambda part: dequantized[part] - self.weight[part], self.rows.rows)
        return errors.to(torch.float64).square_()

    def measure(self, dequantized: Tensor, squares: Tensor | None = None) -> OutputErrors:
        """Output errors of a dequantized weight ``[N, K]``.

        Args:
            squares: its `squared_errors`, if they are known.
        """
        w8a16 = float((self.squared_errors(dequantized) if squares is None else squares).sum())
        errors = self._multiply(lambda part: dequantized[part], self.rows.quantized).sub_(self.reference)
        return OutputErrors(
            w8a16=relative_error(w8a16, self.square),
            w8a8=relative_error(square_sum(errors), self.square),
            power=self.square / len(self.rows),
            squares=torch.linalg.vector_norm(errors, dim=1, dtype=torch.float64).square_(),
        )

    def _multiply(self, load: Callable[[slice], Tensor], rows: Tensor) -> Tensor:
        """Return ``rows W^T``, ``[R, N]``, of a weight that ``load`` gives in blocks of rows."""
        result = rows.new_empty(len(rows), len(self.weight))

        def multiply(part: slice) -> None:
            result[:, part] = rows @ load(part).T

        run_all(multiply, cpu_blocks(len(self.weight), BLOCK, rows.device))
        return result
