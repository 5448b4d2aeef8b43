"""From codes to a result: what they cost, with nearest rounding's cost beside every error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from ..errors import LayerError
from ..formats import Scale
from ..notices import notice
from ..rounding import round_nearest
from .acceptance import Rounded, accept
from .activations import InputRows
from .layer_errors import ErrorPair, LayerErrors, relative_error, square_sum
from .operands import hold_out, load_weight
from .task import LayerTask, QuantizedLayer
from .validator import OutputErrors, Validator


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything that codes of one layer are measured against."""

    task: LayerTask
    weight: Tensor
    """float32 ``[N, K]`` in the stored basis."""
    scale: Scale
    """Of nearest codes, as the format shapes it."""
    validator: Validator | None
    """None without recorded inputs."""

    @classmethod
    def prepare(cls, task: LayerTask, rows: InputRows | None) -> Measurement:
        """Load the weight, find the scales, and hold out rows to judge by."""
        weight = load_weight(task)
        scale = task.format.find_scale(weight, task.recipe.scale)
        validator = None if rows is None else Validator(weight, hold_out(task, rows)[0])
        return cls(task=task, weight=weight, scale=scale, validator=validator)

    @cached_property
    def nearest(self) -> Tensor:
        """Codes of nearest rounding, ``[N, K]``."""
        return round_nearest(self.weight, self.scale, self.task.format)

    def measure(self, codes: Tensor, scale: Scale | None = None) -> QuantizedLayer:
        """The result with ``codes [N, K]`` as they are; ``scale``: theirs, if it is not nearest's."""
        rounded = self._rounded(codes, scale)
        if self.validator is None:
            return self._result(rounded)
        errors, nearest = (self.validator.measure(self._dequantize(r)) for r in (rounded, self._rounded(self.nearest)))
        return add_output_errors(self._result(rounded), errors, nearest)

    def accept(self, codes: Tensor, scale: Scale | None = None) -> QuantizedLayer:
        """The result with those rows of ``codes [N, K]`` that held-out rows prove better than nearest.

        Without recorded inputs all rows stay. ``scale``: of these codes, if it is not nearest's.
        """
        learned = self._rounded(codes, scale)
        if self.validator is None:
            return self._result(learned)
        accepted = accept(learned, self._rounded(self.nearest), self.task.format, self.validator)
        result = self._result(Rounded(accepted.codes, accepted.scale))
        result = add_output_errors(result, accepted.errors, accepted.nearest)
        nearest_rows, rows = accepted.nearest_rows, len(codes)
        if nearest_rows == 0:
            return result
        if nearest_rows == rows:
            return fall_back(result)
        return result.add_notes(notice("rows_kept_nearest", nearest=nearest_rows, rows=rows))

    def _rounded(self, codes: Tensor, scale: Scale | None = None) -> Rounded:
        return Rounded(codes, self.scale if scale is None else scale)

    def _result(self, rounded: Rounded) -> QuantizedLayer:
        square = square_sum(self.weight)
        both = (rounded, self._rounded(self.nearest))
        squares = (square_sum(self._dequantize(r).sub_(self.weight)) for r in both)
        error, nearest = (relative_error(square_error, square) for square_error in squares)
        return make_result(self.task, rounded.codes, rounded.scale, error, nearest)

    def _dequantize(self, rounded: Rounded) -> Tensor:
        return self.task.format.dequantize(rounded.codes, rounded.scale)


def make_result(task: LayerTask, codes: Tensor, scale: Scale, error: float, nearest: float) -> QuantizedLayer:
    """A result with its weight error and nearest's.

    Raises:
        LayerError: the error is not finite, so the codes do not stand for the weight.
    """
    weight = ErrorPair.of(error, nearest)
    if weight is None:
        raise LayerError(
            f"Layer '{task.name}' holds weights of up to {float(task.weight.abs().amax()):.3g}, which overflow float32 "
            f"in the format {task.format.name}; keep the layer with exclude, or repair the source file."
        )
    return QuantizedLayer(codes=codes, scale=scale, errors=LayerErrors(weight=weight))


def add_output_errors(result: QuantizedLayer, errors: OutputErrors, nearest: OutputErrors) -> QuantizedLayer:
    """The result with its output errors and nearest's; an error that overflowed is left out, and a notice says so."""
    w8a16, w8a8 = ErrorPair.of(errors.w8a16, nearest.w8a16), ErrorPair.of(errors.w8a8, nearest.w8a8)
    power = errors.power if math.isfinite(errors.power) else None
    result = result.add_errors(output_w8a16=w8a16, output_w8a8=w8a8)
    measured = replace(result, output_power=power, output_squares=errors.squares)
    return measured if w8a16 and w8a8 else measured.add_notes(notice("output_error_overflow"))


def fall_back(result: QuantizedLayer) -> QuantizedLayer:
    """The result, whose codes are nearest, marked as fallen back."""
    return result.add_errors(fell_back=True).add_notes(notice("fell_back"))
