"""From names and shapes to a decision for every tensor, before any weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from ..calibration.input_scales import measure_input_scale
from ..calibration.statistics import NO_STATISTICS, InputStatistics, Statistics
from ..errors import ProfileError
from ..files.tensors import WEIGHT, TensorSpec, dtype_name, is_bank
from ..formats import FLOATS, FORMATS, Format, Shape
from ..formats.rotation import GROUP_SIZES, largest_group
from ..notices import Notice, notice, render
from ..patterns import PatternSearch
from ..recipe import SOURCE, Recipe
from ..text import counted
from . import heuristics
from .plan import Entry, KeptTensor, LayerPlan, Plan, RemovedTensor
from .profiles import Recognition, match, recognise

STRUCTURE, RECIPE, FORMAT, HEURISTICS = "structure", "recipe", "format", "heuristics"
"""Origins of reasons, beside the sources of profile rules."""


def make_plan(tensors: Mapping[str, TensorSpec], recipe: Recipe, statistics: Statistics | None = None) -> Plan:
    """Decide for every tensor of a model.

    Args:
        tensors: dtype and shape of each tensor, in the source's order.
        recipe: the settings.
        statistics: what a calibration knows, by layer name with or without the model's prefix.

    Raises:
        ProfileError: the named profile does not describe the model, or no layer would be quantized.
    """
    shapes = {name: spec.shape for name, spec in tensors.items()}
    found = recognise(shapes) if recipe.profile == "auto" else match(recipe.profile, shapes)
    builder = _Builder(
        recognition=found, recipe=recipe, statistics=_match_statistics(statistics or {}, tensors, found.prefix)
    )
    plan = Plan(
        profile=found.profile.name,
        prefix=found.prefix,
        certain=found.certain,
        weight_only=found.profile.kind == "text_encoder",
        entries={name: builder.decide(name, spec) for name, spec in tensors.items()},
        warnings=tuple(builder.note_unmatched(tensors)),
    )
    if not plan.layers:
        raise ProfileError(explain_nothing(plan, recipe))
    return plan


WAYS_OUT: Mapping[str, str] = {
    RECIPE: "the settings exclude and overrides keep {count}; loosen them",
    HEURISTICS: "the setting heuristics keeps {count}; turn it off",
    FORMAT: "{format} cannot take {count}; choose another format, or set fallback",
}
"""What to say of layers that are kept, by the origin of the reason; other origins are rules of the profile."""
PROFILE_WAY_OUT = "the profile '{profile}' keeps {count}; choose another with the setting profile"


def explain_nothing(plan: Plan, recipe: Recipe) -> str:
    """Why no layer of a plan is quantized, with the setting that keeps most of them."""
    origins = Counter(entry.origin for entry in plan.kept_layers if entry.origin != STRUCTURE)
    if not origins:
        return f"None of the {len(plan.entries)} tensors is a layer's float weight, so there is nothing to quantize."
    origin, count = origins.most_common(1)[0]
    share = f"{count} of {counted(origins.total(), 'layer')}"
    words = WAYS_OUT.get(origin, PROFILE_WAY_OUT).format(count=share, format=recipe.format, profile=plan.profile)
    return f"No layer would be quantized: {words}."


def with_format(layer: LayerPlan, fmt: Format, recipe: Recipe) -> LayerPlan:
    """The same layer in another format that takes its shape."""
    choice = _Choice(format=fmt, reason=layer.reason, is_lookup_table=layer.is_lookup_table)
    return _plan_layer(layer.name, layer.source, choice, recipe, layer.inputs)


def quantize_kept(kept: KeptTensor, recipe: Recipe) -> LayerPlan:
    """A kept weight as a layer to quantize, in the recipe's first format."""
    choice = _Choice(
        format=_first_format(recipe),
        reason=f"by measurement, for the target; the profile alone would keep it ({kept.reason})",
        is_lookup_table=kept.is_lookup_table,
    )
    return _plan_layer(kept.name.removesuffix(WEIGHT), kept.source, choice, recipe, kept.inputs)


def keep_layer(layer: LayerPlan, recipe: Recipe, reason: str) -> KeptTensor:
    """A planned layer as a kept weight."""
    return KeptTensor(
        name=layer.name + WEIGHT,
        source=layer.source,
        dtype=_kept_dtype(layer.source, recipe.keep_dtype),
        reason=reason,
        inputs=layer.inputs,
        is_lookup_table=layer.is_lookup_table,
    )


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A format to quantize to."""

    format: Format
    reason: str
    notes: tuple[Notice, ...] = ()
    fixed: bool = False
    is_lookup_table: bool = False


@dataclass(frozen=True, kw_only=True)
class _Keep:
    """Why a tensor is kept. dtype: None for the recipe's; the other fields as in `KeptTensor`."""

    reason: str
    origin: str = ""
    dtype: torch.dtype | None = None
    open: bool = False
    is_lookup_table: bool = False


@dataclass(frozen=True, kw_only=True)
class _Builder:
    recognition: Recognition
    recipe: Recipe
    statistics: Mapping[str, InputStatistics]
    """By full layer name."""
    patterns: PatternSearch = field(default_factory=PatternSearch)

    def decide(self, name: str, spec: TensorSpec) -> Entry:
        """Decide how one tensor is stored."""
        outcome = self._outcome(name, spec)
        if isinstance(outcome, RemovedTensor):
            return outcome
        layer = name.removesuffix(WEIGHT)
        inputs = self.statistics.get(layer, NO_STATISTICS)
        if isinstance(outcome, _Choice):
            return _plan_layer(layer, spec, outcome, self.recipe, inputs)
        return KeptTensor(
            name=name,
            source=spec,
            dtype=outcome.dtype or _kept_dtype(spec, self.recipe.keep_dtype),
            reason=outcome.reason,
            origin=outcome.origin,
            open=outcome.open,
            inputs=inputs,
            is_lookup_table=outcome.is_lookup_table,
        )

    def note_unmatched(self, tensors: Mapping[str, TensorSpec]) -> Iterator[Notice]:
        """A notice for each pattern of the recipe that is found in the name of no layer."""
        prefix = self.recognition.prefix
        names = [
            name.removesuffix(WEIGHT)
            for name, spec in tensors.items()
            if name.startswith(prefix) and _structural_reason(name, spec) is None
        ]
        used = {"exclude": self.recipe.exclude, "overrides": tuple(pattern for pattern, _ in self.recipe.overrides)}
        for setting, patterns in used.items():
            for pattern in patterns:
                if all(self.patterns.first([pattern], name) is None for name in names):
                    yield notice("pattern_unmatched", setting=setting, pattern=pattern)

    def _outcome(self, name: str, spec: TensorSpec) -> _Choice | _Keep | RemovedTensor:
        if not name.startswith(self.recognition.prefix):
            return _Keep(reason="outside the recognised model")
        removal = self.recognition.profile.removes(name.removeprefix(self.recognition.prefix))
        if removal is not None:
            return RemovedTensor(name, spec, removal.reason)
        structural = _structural_reason(name, spec)
        if structural is not None:
            return _Keep(reason=structural, origin=STRUCTURE)
        return self._choose(name.removesuffix(WEIGHT), (spec.shape[0], spec.shape[1]))

    def _choose(self, layer: str, shape: Shape) -> _Choice | _Keep:
        """The first of: the recipe's exclusions and overrides, the profile, the heuristics, the recipe's format."""
        recipe, profile = self.recipe, self.recognition.profile
        if self.patterns.first(recipe.exclude, layer) is not None:
            return _Keep(reason="excluded by the recipe", origin=RECIPE)
        bare = layer.removeprefix(self.recognition.prefix)
        decision = profile.decide(bare, shape, embeddings=recipe.embeddings)
        index = self.patterns.first([pattern for pattern, _ in recipe.overrides], layer)
        override = None if index is None else recipe.overrides[index][1]
        if override is not None and override in FLOATS:
            return _Keep(reason="an override asks for this dtype", origin=RECIPE, dtype=FLOATS[override])
        lookup = profile.is_lookup_table(bare)
        if decision.action == "keep" and (override is None or decision.required):
            opened = not decision.required
            return _Keep(reason=decision.reason, origin=decision.source, open=opened, is_lookup_table=lookup)
        if override is not None:
            fitted = self._fit(FORMATS[override], shape, "an override asks for this format", lookup)
            return replace(fitted, fixed=True) if isinstance(fitted, _Choice) else fitted
        leave = heuristics.reason_to_leave(shape) if recipe.heuristics else None
        if leave is not None:
            return _Keep(reason=leave, origin=HEURISTICS)
        return self._fit(_first_format(recipe), shape, decision.reason, lookup)

    def _fit(self, fmt: Format, shape: Shape, reason: str, lookup: bool) -> _Choice | _Keep:
        """The format if it takes the weight, else the recipe's fallback."""
        if 0 in shape:
            return _Keep(reason="empty", origin=STRUCTURE)
        if fmt.takes(shape, lookup):
            return _Choice(format=fmt, reason=reason, is_lookup_table=lookup)
        misfit = _misfit(fmt, shape, lookup)
        fallback = self.recipe.fallback
        if fallback in FLOATS:
            return _Keep(reason="an override asks for this dtype", origin=RECIPE, dtype=FLOATS[fallback])
        if fallback == SOURCE or not FORMATS[fallback].takes(shape, lookup):
            return _Keep(reason=render(misfit), origin=FORMAT, open=True, is_lookup_table=lookup)
        notes = (notice("format_fallback", format=fmt.name), misfit)
        return _Choice(format=FORMATS[fallback], reason=reason, notes=notes, is_lookup_table=lookup)


def _match_statistics(statistics: Statistics, tensors: Iterable[str], prefix: str) -> dict[str, InputStatistics]:
    """By full layer name, whether a calibration names the layers with the model's prefix or without."""
    layers = (name.removesuffix(WEIGHT) for name in tensors if name.endswith(WEIGHT))
    pairs = ((layer, name) for layer in layers for name in (layer.removeprefix(prefix), layer) if name in statistics)
    return {layer: statistics[name] for layer, name in pairs}


def _structural_reason(name: str, spec: TensorSpec) -> str | None:
    """Why no recipe could quantize the tensor, or None."""
    if not name.endswith(WEIGHT):
        return "not a layer's weight"
    if not spec.dtype.is_floating_point or spec.dtype.itemsize == 1:
        return f"stored as {dtype_name(spec.dtype)}"
    if is_bank(name, spec.shape):
        return f"a bank of {spec.shape[0]} experts, which is not quantized"
    if len(spec.shape) != 2:
        return f"{len(spec.shape)}-dimensional: a norm or a convolution"
    return None


def _misfit(fmt: Format, shape: Shape, lookup: bool) -> Notice:
    if lookup and not fmt.supports_lookup:
        return notice("no_lookup", format=fmt.name)
    multiple = f"{fmt.multiple[0]} x {fmt.multiple[1]}"
    return notice("shape_misfit", rows=shape[0], columns=shape[1], multiple=multiple, format=fmt.name)


def _first_format(recipe: Recipe) -> Format:
    return FORMATS[recipe.candidates[0]]


def _plan_layer(layer: str, spec: TensorSpec, choice: _Choice, recipe: Recipe, inputs: InputStatistics) -> LayerPlan:
    shape = (spec.shape[0], spec.shape[1])
    group, notes = _rotation(choice.format, shape, recipe)
    padded = choice.format.padded_shape(shape)
    if padded != shape:
        notes = (*notes, notice("padded", rows=padded[0], columns=padded[1]))
    return LayerPlan(
        name=layer,
        source=spec,
        format=choice.format,
        group=group,
        reason=choice.reason,
        notes=(*choice.notes, *notes),
        full_precision=recipe.full_precision_matrix_mult or choice.format.needs_full_precision,
        input_scale=measure_input_scale(recipe.input_scale, inputs, choice.format),
        inputs=inputs,
        fixed=choice.fixed,
        is_lookup_table=choice.is_lookup_table,
    )


def _rotation(fmt: Format, shape: Shape, recipe: Recipe) -> tuple[int | None, tuple[Notice, ...]]:
    """The rotation group, and a note where it is not the one asked for."""
    if not fmt.rotated:
        return None, ()
    limit = GROUP_SIZES[0] if isinstance(recipe.rotation_group, str) else recipe.rotation_group
    group = largest_group(shape[1], limit)
    if group is None:
        return None, (notice("not_rotated", inputs=shape[1], smallest=GROUP_SIZES[-1]),)
    if group != limit:
        return group, (notice("smaller_rotation", group=group, inputs=shape[1], limit=limit),)
    return group, ()


def _kept_dtype(spec: TensorSpec, keep_dtype: str) -> torch.dtype:
    castable = spec.dtype.is_floating_point and spec.dtype.itemsize > 1
    return FLOATS[keep_dtype] if castable and keep_dtype != SOURCE else spec.dtype
