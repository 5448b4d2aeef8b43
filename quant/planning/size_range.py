"""The sizes that `auto` can reach with a model, from shapes alone: known before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..calibration.statistics import InputStatistics
from ..recipe import AUTO, Recipe
from .builder import keep_layer, quantize_kept
from .candidates import in_formats, with_rotations
from .plan import Entry, KeptTensor, LayerPlan, Plan
from .size_curve import SizeTarget, find_size_target, refuse_size, refuse_target

CanWeigh = Callable[[InputStatistics], bool]


def has_rows(inputs: InputStatistics) -> bool:
    return inputs.has_rows


@dataclass(frozen=True, kw_only=True)
class SizeRange:
    """Bytes of all tensors of the output."""

    smallest: int
    largest: int
    layers: int
    """Number of layers that have a choice."""
    source: int
    """Bytes of the float model."""

    def target(self, recipe: Recipe) -> SizeTarget | None:
        """The recipe's limit of the size; None if it limits the error, or nothing."""
        return find_size_target(recipe, self.source)


def refuse_unreachable(plan: Plan, recipe: Recipe, can_weigh: CanWeigh = has_rows) -> None:
    """Raise RecipeError for a size that no choice of formats reaches, or that needs none."""
    refuse_together([(plan, can_weigh)], recipe)


def refuse_together(models: Sequence[tuple[Plan, CanWeigh]], recipe: Recipe) -> None:
    """`refuse_unreachable` for one size of several models."""
    ranges = [found for plan, can_weigh in models if (found := find_size_range(plan, recipe, can_weigh)) is not None]
    smallest, source = sum(found.smallest for found in ranges), sum(found.source for found in ranges)
    target = find_size_target(recipe, source)
    if not ranges or target is None:
        return
    if target.nbytes < smallest:
        raise refuse_size(target, smallest, source)
    fixed = any(layer.fixed for plan, _ in models for layer in plan.layers.values())
    if target.nbytes >= sum(found.largest for found in ranges) and not fixed:
        raise refuse_target(recipe)


def find_size_range(plan: Plan, recipe: Recipe, can_weigh: CanWeigh = has_rows) -> SizeRange | None:
    """The range of sizes of a plan whose formats `auto` chooses; None for every other recipe.

    Args:
        plan: the decisions that need no weights.
        recipe: the settings.
        can_weigh: whether enough is known of a layer's inputs to compare its output error with other layers'; only then
            a target may quantize a layer that the profile keeps.
    """
    if recipe.format != AUTO:
        return None
    sizes = {key: _sizes(variants, recipe) for key, variants in list_variants(plan, recipe, can_weigh).items()}
    others = plan.nbytes - sum(plan.entries[key].nbytes for key in sizes)
    return SizeRange(
        smallest=others + sum(map(min, sizes.values())),
        largest=others + sum(map(max, sizes.values())),
        layers=len(sizes),
        source=sum(entry.source.nbytes for entry in plan.entries.values()),
    )


def list_variants(plan: Plan, recipe: Recipe, can_weigh: CanWeigh) -> Mapping[str, list[LayerPlan]]:
    """Each layer that has a choice in every format that it may take, by the weight's key."""
    opened = ((key, _open_layer(entry, recipe, can_weigh)) for key, entry in plan.entries.items())
    free = ((key, layer) for key, layer in opened if layer is not None and not layer.fixed)
    variants = ((key, in_formats(layer, recipe.formats, recipe)) for key, layer in free)
    return {key: found for key, found in variants if found}


def _open_layer(entry: Entry, recipe: Recipe, can_weigh: CanWeigh) -> LayerPlan | None:
    """The layer whose format is open, or None.

    A kept layer is opened only where its output error can be compared with other layers': a weight's error says nothing
    of the output's.
    """
    if isinstance(entry, LayerPlan):
        return entry
    if not isinstance(entry, KeptTensor) or not (entry.open and recipe.has_target):
        return None
    return quantize_kept(entry, recipe) if can_weigh(entry.inputs) else None


def _sizes(variants: list[LayerPlan], recipe: Recipe) -> list[int]:
    sizes = [layer.nbytes for variant in variants for layer in with_rotations(variant, recipe)]
    return [*sizes, keep_layer(variants[0], recipe, "").nbytes] if recipe.has_target else sizes
