"""What each way of storing a layer would cost, measured by quantizing it that way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from ..calibration.statistics import InputStatistics
from ..formats import FORMATS
from ..formats.rotation import group_sizes
from ..layer.output_error import OutputError
from ..layer.quantize import quantize_layer
from ..layer.task import Task
from ..recipe import AUTO, Recipe
from .plan import LayerPlan, with_format


@dataclass(frozen=True)
class Candidate:
    """A layer's plan and what it costs. error: relative, of the output as run, or of the weight where no inputs are
    known. importance: what its square counts beside that of other layers.
    """

    plan: LayerPlan
    error: float
    importance: float

    @property
    def cost(self) -> float:
        return self.error**2 * self.importance

    @property
    def text(self) -> str:
        rotated = f" rotated in groups of {self.plan.group}" if self.plan.group else ""
        return f"{self.plan.format.name}{rotated} ({self.error:.4f})"


@dataclass(frozen=True)
class Evaluator:
    """Measures layers as the ``recipe`` would round them, on ``device``.

    by_sensitivity: an output's error counts as much as it was seen to change the model's output. Otherwise its relative
    square counts by the root of the output's power: by the power itself, large outputs would hide all others, and
    without it, a layer that adds nearly nothing would count as much as any. Of the three it samples closest to the
    float model where sizes are equal (shipped model, ComfyUI on the CPU).
    """

    recipe: Recipe
    device: str
    check_cancelled: Callable[[], None]
    by_sensitivity: bool = False

    def weighs(self, known: InputStatistics) -> bool:
        """Whether enough is known of a layer to compare its outputs' error with that of others."""
        return known.rows is not None and (known.sensitivity is not None or not self.by_sensitivity)

    def measure(self, layer: LayerPlan, weight: Tensor, known: InputStatistics) -> Candidate:
        """Quantize ``weight`` as planned."""
        self.check_cancelled()
        task = Task(
            layer.name, weight, layer.format, layer.group, self.recipe, known, self.device, self.check_cancelled
        )
        result = quantize_layer(task)
        if result.output is None:
            return Candidate(layer, result.error, 1.0)
        return Candidate(layer, result.output.w8a8, self._importance(result.output, known))

    def _importance(self, output: OutputError, known: InputStatistics) -> float:
        if self.by_sensitivity and known.sensitivity is not None:
            return output.power * known.sensitivity
        return math.sqrt(output.power)

    def best(self, layers: Iterable[LayerPlan], weight: Tensor, known: InputStatistics) -> Candidate:
        """The plan that costs least; the first of equals."""
        return min((self.measure(layer, weight, known) for layer in layers), key=lambda found: found.cost)


def in_formats(layer: LayerPlan, names: Iterable[str], recipe: Recipe) -> list[LayerPlan]:
    """The same layer in each of the formats that take it."""
    return [
        with_format(layer, FORMATS[name], recipe) for name in names if FORMATS[name].takes(layer.shape, layer.lookup)
    ]


def rotated(layer: LayerPlan, recipe: Recipe) -> list[LayerPlan]:
    """The layer with each rotation that the recipe leaves open; else as it is."""
    if recipe.rotation_group != AUTO or not layer.format.rotated:
        return [layer]
    return [replace(layer, group=group) for group in (*group_sizes(layer.shape[1]), None)]
