"""Choosing by measurement, before a layer is written: the rotation, an upgrade, or the format of every layer at once.

A plan fixes the layout of the output, so what changes it is settled here; each layer that has a choice is quantized in
every way that it may take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..calibration.statistics import NOTHING_KNOWN, InputStatistics
from ..errors import RecipeError
from ..files.sources import Source
from ..files.tensors import WEIGHT
from ..recipe import AUTO, Recipe
from .candidates import Candidate, Evaluator, in_formats, rotated
from .knapsack import Knapsack, Option
from .plan import KeptTensor, LayerPlan, Plan, kept_like, layer_like
from .size_curve import Budget, SizeCurve

Known = Callable[[str], InputStatistics]


@dataclass(frozen=True)
class Settling:
    """A plan whose formats are to be settled. known: what is known of a layer's inputs, by name."""

    plan: Plan
    source: Source
    recipe: Recipe
    known: Known
    evaluator: Evaluator

    def settle(self) -> SizeCurve | None:
        """Change the plan as the recipe asks; gives what `SizeCurve` holds where the recipe's format is auto.

        Raises RecipeError for a target that no choice meets.
        """
        if self.recipe.format == AUTO:
            return self._choose_all()
        if self.recipe.max_error is not None:
            self._upgrade(self.recipe.max_error)
        if self.recipe.rotation_group == AUTO:
            self._rotate()
        return None

    def _rotate(self) -> None:
        for key, layer in list(self.plan.layers.items()):
            variants = rotated(layer, self.recipe)
            if len(variants) > 1:
                best = self.evaluator.best(variants, self.source.read(key), self.known(layer.name))
                self.plan.layers[key] = _noted(best.plan, f"rotation chosen: {best.text}")

    def _upgrade(self, limit: float) -> None:
        """A layer stays in its format if that leaves a relative weight error of at most ``limit``; else it takes the
        upgrade format if that does; else it is kept.
        """
        fast = replace(self.evaluator, recipe=Recipe(scale=self.recipe.scale))
        note = "upgraded: {} exceeds a weight error of {}"
        for key, layer in list(self.plan.layers.items()):
            upgraded = in_formats(layer, [self.recipe.upgrade or layer.format.name], self.recipe)
            tried = [layer, *(_noted(plan, note.format(layer.format.name, limit)) for plan in upgraded)]
            tried.sort(key=lambda plan: plan.nbytes)
            weight, errors = self.source.read(key), list[str]()
            for candidate in tried:
                found = fast.measure(candidate, weight, NOTHING_KNOWN)
                errors.append(found.text)
                if found.error <= limit:
                    self.plan.layers[key] = candidate
                    break
            else:
                reason = f"no format stays under a weight error of {limit}: {', '.join(errors)}"
                self.plan.kept[key] = kept_like(self.plan.layers.pop(key), self.recipe, reason)

    def _choose_all(self) -> SizeCurve:
        candidates = dict(self._candidates())
        if not candidates:
            raise RecipeError("No layer has a choice of formats; loosen exclude and overrides, or name a format.")
        budget = self._budget(candidates)
        choice = budget.choose(self.recipe)
        for index, (key, ways) in zip(choice, candidates.items(), strict=True):
            self._place(key, ways, index)
        if not self.plan.layers:
            raise RecipeError("The target leaves every layer as it is; ask for a smaller size or a larger error.")
        self.plan.sort(self.source.tensors)
        chosen = budget.point(budget.knapsack.total(choice))
        by_outputs = any(self.known(way.found[0].plan.name).rows is not None for way in candidates.values())
        return SizeCurve(budget.curve(), chosen, by_outputs)

    def _budget(self, candidates: Mapping[str, _Ways]) -> Budget:
        knapsack = Knapsack([ways.options for ways in candidates.values()])
        others = self.plan.nbytes - sum(self.plan.nbytes_of(key) for key in candidates)
        importance = math.fsum(ways.found[0].importance for ways in candidates.values())
        return Budget(knapsack, others, importance, sum(spec.nbytes for spec in self.source.tensors.values()))

    def _candidates(self) -> Iterator[tuple[str, _Ways]]:
        """The layers that have a choice, by weight key, with every way measured.

        What a profile keeps is opened only where it can be weighed against the others: a weight's error says nothing of
        what depends on it.
        """
        targeted = self.recipe.has_target
        for key in self.source.tensors:
            layer = self._open_layer(key)
            if layer is None or layer.fixed:
                continue
            weight, known = self.source.read(key), self.known(layer.name)
            plans = in_formats(layer, self.recipe.formats, self.recipe)
            found = [self.evaluator.best(rotated(plan, self.recipe), weight, known) for plan in plans]
            if found:
                yield key, _Ways(found, kept_like(layer, self.recipe, "") if targeted else None)

    def _open_layer(self, key: str) -> LayerPlan | None:
        kept = self.plan.kept.get(key)
        if kept is None:
            return self.plan.layers.get(key)
        opened = kept.open and self.recipe.has_target and self.evaluator.weighs(self.known(key.removesuffix(WEIGHT)))
        return layer_like(kept, self.recipe) if opened else None

    def _place(self, key: str, ways: _Ways, index: int) -> None:
        if index < len(ways.found):
            self.plan.kept.pop(key, None)
            self.plan.layers[key] = _noted(ways.found[index].plan, f"chosen among {ways.text}")
        elif ways.kept is not None:
            self.plan.layers.pop(key, None)
            self.plan.kept[key] = replace(ways.kept, reason=f"chosen to stay: {ways.text}")


@dataclass(frozen=True)
class _Ways:
    """A layer in every format that it may take, measured, and how it would be kept, if it may."""

    found: list[Candidate]
    kept: KeptTensor | None

    @property
    def options(self) -> list[Option]:
        quantized = [Option(way.plan.nbytes, way.cost) for way in self.found]
        return quantized if self.kept is None else [*quantized, Option(self.kept.nbytes, 0.0)]

    @property
    def text(self) -> str:
        return ", ".join(way.text for way in self.found)


def _noted(layer: LayerPlan, note: str) -> LayerPlan:
    return replace(layer, notes=(*layer.notes, note))
