"""From names and shapes to a decision for every tensor, before any weight is read.

A plan fixes the layout of the output completely, so a file can be written as a stream and a dry run costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from ..errors import ProfileError
from ..files.tensors import WEIGHT, Layout, Spec, TensorSpec
from ..formats import FLOATS, FORMATS, Format, Shape, marker
from ..formats.rotation import GROUP_SIZES, largest_group
from ..recipe import OFF, SOURCE, Recipe
from . import heuristics
from .profiles import Recognition, match, recognise
from .size_curve import SizeCurve


@dataclass(frozen=True)
class LayerPlan:
    """A layer to quantize. name: its full key without ``.weight``. group: rotation group, None where not rotated.

    measured: the absolute maximum of its inputs is known. fixed: the user names its format, so that no measurement
    changes it. lookup: it is an embedding.
    """

    name: str
    source: TensorSpec
    format: Format
    group: int | None
    reason: str
    notes: tuple[str, ...] = ()
    full_precision: bool = False
    input_scale: bool = False
    measured: bool = False
    fixed: bool = False
    lookup: bool = False

    @property
    def shape(self) -> Shape:
        return self.source.shape[0], self.source.shape[1]

    @property
    def marker(self) -> marker.Marker:
        fields = self.format.marker_fields(self.group, self.full_precision)
        # The host knows the layer's shape from the model; whoever reads the file alone does not.
        padded = self.format.padded_shape(self.shape) != self.shape
        return fields | ({"orig_shape": list(self.shape)} if padded else {})

    @property
    def layout(self) -> Layout:
        tensors = {f"{self.name}.{suffix}": spec for suffix, spec in self.format.layout(self.shape).items()}
        if self.input_scale:
            tensors[f"{self.name}.input_scale"] = (torch.float32, ())
        return tensors | {self.name + marker.SUFFIX: (torch.uint8, tuple(marker.to_tensor(self.marker).shape))}

    @property
    def nbytes(self) -> int:
        return sum(Spec(*spec).nbytes for spec in self.layout.values())


@dataclass(frozen=True)
class KeptTensor:
    """A tensor that stays in floating point (or is no float at all), in ``dtype``, and why.

    open: it could be quantized, so that a measurement may decide otherwise.
    """

    name: str
    source: TensorSpec
    dtype: torch.dtype
    reason: str
    origin: str = ""
    open: bool = False

    @property
    def nbytes(self) -> int:
        return Spec(self.dtype, self.source.shape).nbytes


@dataclass(frozen=True)
class Plan:
    """Every tensor of the source in exactly one of layers (by weight key), kept and removed; in the source's order.

    precision: what was measured to choose the formats, if it was.
    """

    profile: str
    prefix: str
    certain: bool
    layers: dict[str, LayerPlan] = field(default_factory=dict)
    kept: dict[str, KeptTensor] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    precision: SizeCurve | None = None

    @property
    def layout(self) -> Layout:
        """Dtype and shape of every tensor of the output."""
        kept = {name: (entry.dtype, entry.source.shape) for name, entry in self.kept.items()}
        return kept | {key: spec for layer in self.layers.values() for key, spec in layer.layout.items()}

    @property
    def nbytes(self) -> int:
        """Of all tensors of the output."""
        return sum(Spec(*spec).nbytes for spec in self.layout.values())

    def nbytes_of(self, key: str) -> int:
        """Of the tensors that take the place of the weight ``key``."""
        return self.layers[key].nbytes if key in self.layers else self.kept[key].nbytes

    def sort(self, names: Iterable[str]) -> None:
        """Put the layers in the order of ``names`` again, after some have moved."""
        ordered = {key: self.layers[key] for key in names if key in self.layers}
        self.layers.clear()
        self.layers.update(ordered)

    @property
    def markers(self) -> dict[str, marker.Marker]:
        return {layer.name: layer.marker for layer in self.layers.values()}


def make_plan(tensors: Mapping[str, TensorSpec], recipe: Recipe, measured: frozenset[str] = frozenset()) -> Plan:
    """Decide for every tensor of a model. ``measured`` names the layers whose inputs' absolute maximum is known.

    Raises ProfileError if the named profile does not describe the model, or nothing at all would be quantized.
    """
    shapes = {name: spec.shape for name, spec in tensors.items()}
    found = recognise(shapes) if recipe.profile == "auto" else match(recipe.profile, shapes)
    plan = Plan(found.profile.name, found.prefix, found.certain)
    for name, spec in tensors.items():
        _place(plan, name, spec, found, recipe, measured)
    if not plan.layers:
        raise ProfileError(
            f"The profile '{plan.profile}' leaves no layer of this model to quantize ({len(tensors)} tensors); "
            "name another with the profile setting, or loosen exclude and heuristics."
        )
    return plan


def with_format(layer: LayerPlan, fmt: Format, recipe: Recipe) -> LayerPlan:
    """The same layer in another format that takes its shape."""
    choice = _Choice(fmt, layer.reason, lookup=layer.lookup)
    return _plan_layer(layer.name, layer.source, choice, recipe, measured=layer.measured)


def layer_like(kept: KeptTensor, recipe: Recipe) -> LayerPlan:
    """A layer that is kept, as if it were to be quantized; its inputs are measured."""
    choice = _Choice(_first_format(recipe), f"a measurement decides, not: {kept.reason}")
    return _plan_layer(kept.name.removesuffix(WEIGHT), kept.source, choice, recipe, measured=True)


def kept_like(layer: LayerPlan, recipe: Recipe, reason: str) -> KeptTensor:
    """A planned layer as it stays in floating point."""
    return KeptTensor(layer.name + WEIGHT, layer.source, _kept_dtype(layer.source, recipe.keep_dtype), reason)


def _place(
    plan: Plan, name: str, spec: TensorSpec, found: Recognition, recipe: Recipe, measured: frozenset[str]
) -> None:
    inside = name.startswith(found.prefix)
    removal = found.profile.removes(name.removeprefix(found.prefix)) if inside else None
    if removal is not None:
        plan.removed[name] = removal.reason
        return
    outcome = _layer_format(name, spec, found, recipe) if inside else _Left("outside the recognised model")
    if isinstance(outcome, _Left):
        dtype = _kept_dtype(spec, recipe.keep_dtype)
        plan.kept[name] = KeptTensor(name, spec, dtype, outcome.reason, outcome.origin, outcome.open)
    elif isinstance(outcome, torch.dtype):
        plan.kept[name] = KeptTensor(name, spec, outcome, "an override asks for this dtype", "recipe")
    else:
        layer = name.removesuffix(WEIGHT)
        known = bool({layer, layer.removeprefix(found.prefix)} & measured)
        plan.layers[name] = _plan_layer(layer, spec, outcome, recipe, known)


@dataclass(frozen=True)
class _Choice:
    """A format to quantize to."""

    format: Format
    reason: str
    notes: tuple[str, ...] = ()
    fixed: bool = False
    lookup: bool = False


@dataclass(frozen=True)
class _Left:
    """Why a tensor is left; open: as in `KeptTensor`."""

    reason: str
    origin: str = ""
    open: bool = False


def _layer_format(name: str, spec: TensorSpec, found: Recognition, recipe: Recipe) -> _Choice | torch.dtype | _Left:
    """A format to quantize to, a dtype to cast to, or why the tensor is left."""
    if not name.endswith(WEIGHT):
        return _Left("not a layer's weight", "structure")
    if not spec.dtype.is_floating_point or spec.dtype.itemsize == 1:
        return _Left(f"stored as {_dtype_name(spec.dtype)}", "structure")
    if len(spec.shape) != 2:
        return _Left(f"{len(spec.shape)}-dimensional: a norm or a convolution", "structure")
    layer = name.removesuffix(WEIGHT)
    if any(re.search(pattern, layer) for pattern in recipe.exclude):
        return _Left("excluded by the recipe", "recipe")
    bare = layer.removeprefix(found.prefix)
    decision = found.profile.decide(bare, spec.shape, embeddings=recipe.embeddings)
    wanted = next((fmt for pattern, fmt in recipe.overrides if re.search(pattern, layer)), None)
    if wanted is not None and wanted in FLOATS:
        return FLOATS[wanted]
    if decision.action == "keep" and (wanted is None or decision.required):
        return _Left(decision.reason, decision.source, open=not decision.required)
    shape = (spec.shape[0], spec.shape[1])
    leave = heuristics.reason_to_leave(shape) if recipe.heuristics and wanted is None else None
    if leave is not None:
        return _Left(leave, "heuristics")
    reason = decision.reason if wanted is None else "an override asks for this format"
    fmt = FORMATS[wanted] if wanted else _first_format(recipe)
    outcome = _fitting(fmt, shape, recipe, reason, found.profile.is_lookup_table(bare))
    return replace(outcome, fixed=wanted is not None) if isinstance(outcome, _Choice) else outcome


def _fitting(fmt: Format, shape: Shape, recipe: Recipe, reason: str, lookup: bool) -> _Choice | torch.dtype | _Left:
    """The format if it takes the weight, else the recipe's fall-back."""
    if 0 in shape:
        return _Left("empty", "structure")
    if fmt.takes(shape, lookup):
        return _Choice(fmt, reason, lookup=lookup)
    why = f"{shape[0]} x {shape[1]} does not divide by {fmt.multiple[0]} x {fmt.multiple[1]}, as {fmt.name} needs"
    if lookup and not fmt.supports_lookup:
        why = f"ComfyUI does not look embeddings up in {fmt.name}"
    if recipe.fallback in FLOATS:
        return FLOATS[recipe.fallback]
    if recipe.fallback == SOURCE or not FORMATS[recipe.fallback].takes(shape, lookup):
        return _Left(why, "format", open=True)
    return _Choice(FORMATS[recipe.fallback], reason, (f"fell back: {why}",), lookup)


def _first_format(recipe: Recipe) -> Format:
    return FORMATS[recipe.candidates[0]]


def _plan_layer(layer: str, spec: TensorSpec, choice: _Choice, recipe: Recipe, measured: bool) -> LayerPlan:
    shape = (spec.shape[0], spec.shape[1])
    group, notes = _rotation(choice.format, shape, recipe)
    if choice.format.padded_shape(shape) != shape:
        padded = choice.format.padded_shape(shape)
        notes = (*notes, f"padded to {padded[0]} x {padded[1]}")
    return LayerPlan(
        name=layer,
        source=spec,
        format=choice.format,
        group=group,
        reason=choice.reason,
        notes=(*choice.notes, *notes),
        full_precision=recipe.full_precision_matrix_mult,
        input_scale=recipe.input_scale != OFF and choice.format.static_input and measured,
        measured=measured,
        fixed=choice.fixed,
        lookup=choice.lookup,
    )


def _rotation(fmt: Format, shape: Shape, recipe: Recipe) -> tuple[int | None, tuple[str, ...]]:
    if not fmt.rotated:
        return None, ()
    wanted = GROUP_SIZES[0] if isinstance(recipe.rotation_group, str) else recipe.rotation_group
    group = largest_group(shape[1], wanted)
    if group is None:
        return None, (f"not rotated: {shape[1]} inputs do not divide by 16",)
    if group != wanted:
        return group, (f"rotated in groups of {group}: {shape[1]} inputs do not divide by {wanted}",)
    return group, ()


def _kept_dtype(spec: TensorSpec, keep_dtype: str) -> torch.dtype:
    castable = spec.dtype.is_floating_point and spec.dtype.itemsize > 1
    return FLOATS[keep_dtype] if castable and keep_dtype != SOURCE else spec.dtype


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
