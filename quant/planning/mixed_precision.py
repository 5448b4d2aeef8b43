"""Choices by measurement before a layer is written: rotation, an upgrade, or the formats of all layers together.

A plan fixes the layout of the output, so whatever changes it is settled here. Each layer that has a choice is quantized
in every way that it may take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice

from ..calibration.statistics import NO_STATISTICS
from ..errors import RecipeError
from ..files.sources import Source
from ..layer.choice import choose_alternative
from ..notices import notice
from ..recipe import AUTO, Recipe
from ..text import percent
from .builder import keep_layer
from .candidates import Candidate, Evaluator, choose_best, in_formats, with_rotations
from .knapsack import Choice, Knapsack, Option
from .plan import Entry, KeptTensor, LayerPlan, Plan
from .size_curve import Budget, SizeCurve, join_budgets, refuse_target
from .size_range import list_variants


def settle_plan(plan: Plan, source: Source, evaluator: Evaluator) -> Plan:
    """The plan with everything decided that its recipe leaves to measurement.

    Args:
        plan: the decisions that need no weights.
        source: the weights.
        evaluator: holds the recipe, and measures.

    Raises:
        RecipeError: no choice of formats meets the target.
        LayerError, CheckpointError: from measuring.
    """
    search = _Search(plan=plan, source=source, recipe=evaluator.recipe, evaluator=evaluator)
    if evaluator.recipe.format == AUTO:
        measured = search.measure_formats()
        return measured.settle(measured.choose(evaluator.recipe), evaluator.recipe)
    if evaluator.recipe.max_error is not None:
        search = replace(search, plan=plan.with_entries(search.upgrades(evaluator.recipe.max_error)))
        if not search.plan.layers:
            formats = f"{evaluator.recipe.format} or {evaluator.recipe.upgrade}"
            raise RecipeError(
                f"No layer would be quantized: none stays under max_error {evaluator.recipe.max_error:g} in {formats}; "
                "raise max_error, or upgrade to a closer format."
            )
    if evaluator.recipe.rotation_group == AUTO:
        return search.plan.with_entries(search.rotations())
    return search.plan


def settle_together(parts: Sequence[tuple[Plan, Source, Evaluator]], recipe: Recipe) -> tuple[list[Plan], SizeCurve]:
    """As `settle_plan` for several models that share one target; their recipes have the format ``auto`` and a target.

    The target is split where it costs least, by the mean squared error of each model (`join_budgets`).

    Args:
        parts: plan, weights and evaluator of each model.
        recipe: holds the target of all together.

    Returns:
        The plans, and the error of all models at every size.

    Raises:
        RecipeError: no choice of formats meets the target.
        LayerError, CheckpointError: from measuring.
    """
    searches = [_Search(plan=p, source=s, recipe=e.recipe, evaluator=e) for p, s, e in parts]
    measured = [search.measure_formats() for search in searches]
    budget = join_budgets([model.budget for model in measured])
    chosen = budget.choose(recipe)
    options = iter(chosen)
    plans = [model.settle(tuple(islice(options, len(model.choices))), recipe) for model in measured]
    point = budget.point(budget.knapsack.total(chosen))
    return plans, SizeCurve(budget.curve(), point, all(model.by_outputs for model in measured))


@dataclass(frozen=True, kw_only=True)
class MeasuredFormats:
    """A model with every layer that has a choice measured in every format that it may take."""

    plan: Plan
    choices: Mapping[str, _LayerChoice]
    """By the weight's key."""
    source_nbytes: int
    """Of the float model."""

    @cached_property
    def budget(self) -> Budget:
        return Budget(
            knapsack=Knapsack([choice.options for choice in self.choices.values()]),
            others=self.plan.nbytes - sum(self.plan.entries[key].nbytes for key in self.choices),
            importance=math.fsum(choice.candidates[0].importance for choice in self.choices.values()),
            source=self.source_nbytes,
        )

    @property
    def by_outputs(self) -> bool:
        """Whether the errors are output errors on recorded inputs."""
        return any(choice.candidates[0].plan.inputs.has_rows for choice in self.choices.values())

    def choose(self, recipe: Recipe) -> Choice:
        """The choice of least cost within the recipe's target; without one, each layer's best candidate.

        Raises:
            RecipeError: no choice meets the target.
        """
        if recipe.has_target:
            return self.budget.choose(recipe)
        return tuple(choice.best for choice in self.choices.values())

    def settle(self, chosen: Choice, recipe: Recipe) -> Plan:
        """The plan with a choice of formats.

        Args:
            chosen: One option for each of `choices`.
            recipe: Holds the target.

        Raises:
            RecipeError: nothing would be quantized.
        """
        pairs = zip(chosen, self.choices.items(), strict=True)
        plan = self.plan.with_entries({key: choice.entry(index) for index, (key, choice) in pairs})
        if not plan.layers:
            raise refuse_target(recipe)
        point = self.budget.point(self.budget.knapsack.total(chosen))
        return replace(plan, size_curve=SizeCurve(self.budget.curve(), point, self.by_outputs))


@dataclass(frozen=True, kw_only=True)
class _Search:
    plan: Plan
    source: Source
    recipe: Recipe
    evaluator: Evaluator

    def rotations(self) -> dict[str, Entry]:
        """Each layer whose rotation is open, with the best one."""
        variants = {key: with_rotations(layer, self.recipe) for key, layer in self.plan.layers.items()}
        open_layers = {key: plans for key, plans in variants.items() if len(plans) > 1}
        measured = self.evaluator.measure(open_layers, self.source.read)
        best = {key: choose_best(candidates) for key, candidates in measured.items()}
        return {key: one.plan.with_note(notice("rotation_chosen", candidate=one.text)) for key, one in best.items()}

    def upgrades(self, limit: float) -> dict[str, Entry]:
        """Each layer as it stays below the relative weight error ``limit``: in its format, upgraded, or kept."""
        variants = {key: self._list_upgrades(layer, limit) for key, layer in self.plan.layers.items()}
        # By the error of the weight, which nearest rounding leaves.
        quick = replace(self.evaluator, recipe=Recipe(scale=self.recipe.scale), kept=None)
        blind = {key: [replace(plan, inputs=NO_STATISTICS) for plan in plans] for key, plans in variants.items()}
        measured = quick.measure(blind, self.source.read, limit)
        return {key: self._choose_upgrade(key, plans, measured[key], limit) for key, plans in variants.items()}

    def _list_upgrades(self, layer: LayerPlan, limit: float) -> list[LayerPlan]:
        """The layer in its own and in the upgrade's format, the smallest first."""
        note = notice("upgraded", format=layer.format.name, limit=percent(limit))
        upgraded = in_formats(layer, [self.recipe.upgrade or layer.format.name], self.recipe)
        return sorted([layer, *(plan.with_note(note) for plan in upgraded)], key=lambda plan: plan.nbytes)

    def _choose_upgrade(self, key: str, plans: list[LayerPlan], measured: list[Candidate], limit: float) -> Entry:
        """The plan whose candidate was measured last, if it is within the limit."""
        if measured[-1].error <= limit:
            return plans[len(measured) - 1]
        texts = ", ".join(candidate.text for candidate in measured)
        reason = f"no format stays under a weight error of {percent(limit)}: {texts}"
        return keep_layer(self.plan.layers[key], self.recipe, reason)

    def measure_formats(self) -> MeasuredFormats:
        """Measure the formats of all layers, to choose them together.

        Raises:
            RecipeError: no layer has a choice.
        """
        choices = self._choices()
        if not choices:
            raise RecipeError("No layer has a choice of formats; loosen exclude and overrides, or name a format.")
        source = sum(spec.nbytes for spec in self.source.tensors.values())
        return MeasuredFormats(plan=self.plan, choices=choices, source_nbytes=source)

    def _choices(self) -> dict[str, _LayerChoice]:
        """The layers that have a choice, by the weight's key, with every candidate measured."""
        choices = list_variants(self.plan, self.recipe, self.evaluator.can_weigh)
        variants = {
            key: [rotated for plan in plans for rotated in with_rotations(plan, self.recipe)]
            for key, plans in choices.items()
        }
        measured = self.evaluator.measure(variants, self.source.read)
        return {key: self._make_choice(candidates) for key, candidates in measured.items()}

    def _make_choice(self, measured: list[Candidate]) -> _LayerChoice:
        """The best rotation of each format."""
        by_format = groupby(measured, key=lambda candidate: candidate.plan.format.name)
        best = [choose_best(list(candidates)) for _, candidates in by_format]
        return _LayerChoice(best, keep_layer(best[0].plan, self.recipe, "") if self.recipe.has_target else None)


@dataclass(frozen=True)
class _LayerChoice:
    """A layer in every format that it may take, measured, and as it would be kept, if it may be."""

    candidates: list[Candidate]
    kept: KeptTensor | None

    @property
    def best(self) -> int:
        """The first candidate, or another one that is surely better."""
        return choose_alternative([candidate.measured for candidate in self.candidates])

    @property
    def options(self) -> list[Option]:
        quantized = [Option(candidate.plan.nbytes, candidate.cost) for candidate in self.candidates]
        return quantized if self.kept is None else [*quantized, Option(self.kept.nbytes, 0.0)]

    def entry(self, index: int) -> Entry:
        """The decision that the option ``index`` stands for."""
        if index < len(self.candidates):
            kind = "format_closest" if self.kept is None else "format_chosen"
            texts = [candidate.text for candidate in self.candidates]
            return self.candidates[index].plan.with_note(notice(kind, candidates=texts))
        assert self.kept is not None  # the last option is there only if the layer may be kept
        return replace(self.kept, reason="stays in float by measurement: the target has room for it")
