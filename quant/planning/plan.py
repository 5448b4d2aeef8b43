"""The plan: how every tensor of a model is stored.

A plan fixes the layout of the output completely, so that a file can be written as a stream and a dry run costs nothing.
Plans are values: a change gives another plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch

from ..calibration.statistics import NO_STATISTICS, InputStatistics
from ..files.tensors import Layout, Spec, TensorSpec, is_layer
from ..formats import Format, Shape
from ..formats.marker import SUFFIX, Marker
from ..notices import Notice
from .size_curve import SizeCurve


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """A layer to quantize."""

    name: str
    """Full key of the weight, without ``.weight``."""
    source: TensorSpec
    format: Format
    group: int | None = None
    """Rotation group; None: not rotated."""
    reason: str
    """Why the layer is quantized."""
    notes: tuple[Notice, ...] = ()
    full_precision: bool = False
    """ComfyUI dequantizes and multiplies in 16 bits."""
    input_scale: float | None = None
    """Static scale of the inputs, which is written; None: none is."""
    inputs: InputStatistics = NO_STATISTICS
    """Statistics of the layer's inputs from a calibration."""
    fixed: bool = False
    """The recipe names the layer's format, so that no measurement changes it."""
    is_lookup_table: bool = False
    """ComfyUI takes single rows out of the weight: an embedding."""

    @property
    def shape(self) -> Shape:
        return self.source.shape[0], self.source.shape[1]

    @property
    def marker(self) -> Marker:
        return self.format.make_marker(self.shape, self.group, self.full_precision)

    @property
    def layout(self) -> Layout:
        """Dtype and shape of every tensor that takes the weight's place."""
        tensors = {f"{self.name}.{suffix}": spec for suffix, spec in self.format.layout(self.shape).items()}
        if self.input_scale is not None:
            tensors[f"{self.name}.input_scale"] = (torch.float32, ())
        return tensors | {self.name + SUFFIX: (torch.uint8, (self.marker.nbytes,))}

    @property
    def nbytes(self) -> int:
        return sum(Spec(*spec).nbytes for spec in self.layout.values())

    def with_note(self, note: Notice) -> LayerPlan:
        return replace(self, notes=(*self.notes, note))


@dataclass(frozen=True, kw_only=True)
class KeptTensor:
    """A tensor that is not quantized."""

    name: str
    source: TensorSpec
    dtype: torch.dtype
    """In the output."""
    reason: str
    origin: str = ""
    """Who gives the reason: structure, recipe, format, heuristics, or a profile rule's source."""
    open: bool = False
    """It could be quantized, so that a measurement may decide otherwise."""
    inputs: InputStatistics = NO_STATISTICS
    is_lookup_table: bool = False

    @property
    def layout(self) -> Layout:
        return {self.name: (self.dtype, self.source.shape)}

    @property
    def nbytes(self) -> int:
        return Spec(self.dtype, self.source.shape).nbytes


@dataclass(frozen=True)
class RemovedTensor:
    """A tensor that is not in the output."""

    name: str
    source: TensorSpec
    reason: str

    @property
    def layout(self) -> Layout:
        return {}

    @property
    def nbytes(self) -> int:
        return 0


Entry = LayerPlan | KeptTensor | RemovedTensor
_Kind = TypeVar("_Kind", LayerPlan, KeptTensor, RemovedTensor)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One decision for each tensor of the source."""

    profile: str
    prefix: str
    """Prefix of the model's tensors in the file."""
    certain: bool
    """The profile was recognised or named; else the generic rules apply."""
    weight_only: bool = False
    """ComfyUI dequantizes the weights of the model, whatever the format, and multiplies in 16 bits: text encoders."""
    entries: Mapping[str, Entry]
    """By key, in the source's order."""
    size_curve: SizeCurve | None = None
    """Error at every size, if the formats were chosen by measurement."""
    warnings: tuple[Notice, ...] = ()
    """Notices about loading the result in ComfyUI."""

    @cached_property
    def layers(self) -> dict[str, LayerPlan]:
        """The layers to quantize, by the weight's key."""
        return self._select(LayerPlan)

    @cached_property
    def kept(self) -> dict[str, KeptTensor]:
        return self._select(KeptTensor)

    @property
    def kept_layers(self) -> list[KeptTensor]:
        """The kept tensors that are weights of layers."""
        return [entry for entry in self.kept.values() if is_layer(entry.name, entry.source.shape)]

    @cached_property
    def removed(self) -> dict[str, RemovedTensor]:
        return self._select(RemovedTensor)

    @property
    def layout(self) -> Layout:
        """Dtype and shape of every tensor of the output."""
        kept = {key: spec for entry in self.kept.values() for key, spec in entry.layout.items()}
        return kept | {key: spec for layer in self.layers.values() for key, spec in layer.layout.items()}

    @property
    def markers(self) -> dict[str, Marker]:
        return {layer.name: layer.marker for layer in self.layers.values()}

    @property
    def nbytes(self) -> int:
        """Of all tensors of the output."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def source_nbytes(self) -> int:
        """Of all tensors of the source that are not removed."""
        entries = [entry for entry in self.entries.values() if not isinstance(entry, RemovedTensor)]
        return sum(entry.source.nbytes for entry in entries)

    def with_entries(self, changes: Mapping[str, Entry]) -> Plan:
        """The plan with other decisions for some of its tensors; the order stays."""
        return replace(self, entries={**self.entries, **changes})

    def _select(self, kind: type[_Kind]) -> dict[str, _Kind]:
        return {key: entry for key, entry in self.entries.items() if isinstance(entry, kind)}
