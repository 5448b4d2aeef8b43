"""Cost of every format that a layer could take, measured by quantizing the layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from torch import Tensor

from ..calibration.statistics import InputStatistics
from ..formats import FORMATS
from ..formats.rotation import group_sizes
from ..layer.choice import Alternative, choose_alternative
from ..layer.quantize import quantize_layer
from ..layer.task import LayerTask
from ..layer.work import estimate_work
from ..recipe import AUTO, Recipe
from ..text import percent
from ..workers.devices import spread
from ..workers.workers import Workers
from .builder import with_format
from .plan import LayerPlan

Figures = tuple[Alternative, float]
"""`Candidate.measured` and `Candidate.importance`."""
Way = tuple[str, str, int | None, bool]
"""The key of a layer's weight, the format, the rotation group, and `Evaluator.by_sensitivity`."""
KeptFigures = dict[Way, Figures]
"""What earlier runs have measured, of one source, one calibration and one recipe, targets and formats aside."""


class Observer(Protocol):
    """Follows a measurement."""

    def begin(self, keys: Iterable[str]) -> None:
        """Take the keys of the weights that will be measured."""

    def count(self, key: str) -> None:
        """Take the key of a weight that has been measured."""


@dataclass(frozen=True)
class Candidate:
    """One way of storing a layer, measured."""

    plan: LayerPlan
    measured: Alternative
    importance: float
    """Weight of the squared error beside other layers' errors."""

    @property
    def error(self) -> float:
        return self.measured.error

    @property
    def cost(self) -> float:
        return self.error**2 * self.importance

    @property
    def text(self) -> str:
        """``format (error)``, or ``format/group (error)`` if the layer is rotated: the same in every language."""
        group = f"/{self.plan.group}" if self.plan.group else ""
        return f"{self.plan.format.name}{group} ({percent(self.error)})"


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Quantizes layers as the recipe would round them, and measures the error."""

    recipe: Recipe
    workers: Workers
    check_cancelled: Callable[[], None]
    weight_only: bool = False
    """As `Plan.weight_only`."""
    by_sensitivity: bool = False
    """Errors count by the layer's sensitivity. Otherwise the relative squared error counts by the root of the output's
    power: by the power itself, large outputs would hide all others, and without it, a layer that adds nearly nothing
    would count as much as any. Of the three it samples closest to the float model at equal size (shipped model, ComfyUI
    on the CPU)."""
    kept: KeptFigures | None = None
    """Read before a layer is measured, and added to; None: nothing is kept."""
    observer: Observer | None = None

    def can_weigh(self, inputs: InputStatistics) -> bool:
        """Whether enough is known of a layer to compare its output error with other layers'."""
        return inputs.has_rows and (inputs.sensitivity is not None or not self.by_sensitivity)

    def measure(
        self, jobs: Mapping[str, Sequence[LayerPlan]], read: Callable[[str], Tensor], limit: float = -math.inf
    ) -> dict[str, list[Candidate]]:
        """Quantize layers in every way that is planned for them, divided among the workers.

        Args:
            jobs: the ways, by the key of the weight.
            read: returns the weight ``[N, K]`` of a key.
            limit: a layer's other ways are left out after the first whose error is at most this.

        Returns:
            The candidates of each layer, in the order of its ways, as far as they were measured.

        Raises:
            LayerError: as `quantize_layer`.
            RankError: another rank failed.
        """
        costs = {key: self._estimate_work(variants) for key, variants in jobs.items()}
        own = self.workers.select_own(costs)
        found = {key: known for key in own if (known := self._find_kept(key, jobs[key])) is not None}
        waiting = [key for key in own if key not in found]
        if self.observer is not None:
            self.observer.begin(waiting)
        loaded = ((key, read(key)) for key in waiting)
        measure = partial(self._measure, jobs=jobs, limit=limit)
        with closing(spread(loaded, self.workers.devices, measure, self.check_cancelled)) as measured:
            for key, result in measured:
                found[key] = result
                if self.observer is not None:
                    self.observer.count(key)
            figures = self.workers.merge(found, self.check_cancelled)
        # Figures travel between ranks; plans, which hold the calibration's rows, do not.
        return {
            key: [Candidate(plan, *pair) for plan, pair in zip(variants, figures[key], strict=False)]
            for key, variants in jobs.items()
        }

    def _measure(
        self, loaded: tuple[str, Tensor], device: str, jobs: Mapping[str, Sequence[LayerPlan]], limit: float
    ) -> tuple[str, list[Figures]]:
        key, weight = loaded
        figures = list[Figures]()
        for layer in jobs[key]:
            self.check_cancelled()
            kept = None if self.kept is None else self.kept.get(self._name(key, layer))
            if kept is not None:
                figures.append(kept)
                continue
            task = make_task(layer, weight, self.recipe, device, self.check_cancelled, weight_only=self.weight_only)
            result = quantize_layer(task)
            measured = Alternative.of(result)
            figures.append((measured, self._importance(result.output_power, layer.inputs)))
            if self.kept is not None:
                self.kept[self._name(key, layer)] = figures[-1]
            if measured.error <= limit:
                break
        return key, figures

    def _find_kept(self, key: str, variants: Sequence[LayerPlan]) -> list[Figures] | None:
        """The figures of all variants of a layer; None if one has to be measured."""
        if self.kept is None:
            return None
        figures = [self.kept.get(self._name(key, layer)) for layer in variants]
        known = [entry for entry in figures if entry is not None]
        return known if len(known) == len(variants) else None

    def _name(self, key: str, layer: LayerPlan) -> Way:
        return key, layer.format.name, layer.group, self.by_sensitivity

    def _estimate_work(self, variants: Sequence[LayerPlan]) -> float:
        return math.fsum(estimate_work(layer.shape, self.recipe, layer.inputs) for layer in variants)

    def _importance(self, output_power: float | None, inputs: InputStatistics) -> float:
        if output_power is None:
            return 1.0
        if self.by_sensitivity and inputs.sensitivity is not None:
            return output_power * inputs.sensitivity
        return math.sqrt(output_power)


def choose_best(candidates: Sequence[Candidate]) -> Candidate:
    """The first candidate of a layer, or another one that is surely better.

    How much a layer matters to the result is the same for all of its candidates, and changes nothing here.
    """
    return candidates[choose_alternative([candidate.measured for candidate in candidates])]


def make_task(
    layer: LayerPlan,
    weight: Tensor,
    recipe: Recipe,
    device: str,
    check_cancelled: Callable[[], None],
    *,
    weight_only: bool,
) -> LayerTask:
    """Make the `quantize_layer` task for ``weight [N, K]`` of a planned layer."""
    return LayerTask(
        name=layer.name,
        weight=weight,
        format=layer.format,
        group=layer.group,
        recipe=recipe,
        inputs=layer.inputs,
        input_scale=layer.input_scale,
        full_precision=layer.full_precision,
        weight_only=weight_only,
        device=device,
        check_cancelled=check_cancelled,
    )


def in_formats(layer: LayerPlan, names: Iterable[str], recipe: Recipe) -> list[LayerPlan]:
    """The same layer in each of the formats that take it."""
    formats = (FORMATS[name] for name in names)
    return [with_format(layer, fmt, recipe) for fmt in formats if fmt.takes(layer.shape, layer.is_lookup_table)]


def with_rotations(layer: LayerPlan, recipe: Recipe) -> list[LayerPlan]:
    """The layer with each rotation that the recipe leaves open; else as it is."""
    if recipe.rotation_group != AUTO or not layer.format.rotated:
        return [layer]
    unrotated = () if layer.format.needs_rotation else (None,)
    return [replace(layer, group=group) for group in (*group_sizes(layer.shape[1]), *unrotated)]
