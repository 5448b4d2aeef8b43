"""Finds the layers of a source that are quantized, by whatever program."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from ..errors import CheckpointError, MarkerError
from ..formats import find_recipe_name, foreign
from ..formats.marker import HEADER_KEY, NAME, SUFFIX, Marker, from_header, refuse_impossible
from ..formats.stored import BLOCK_FP8, LEGACY_NAMES, STORED_FORMATS, UNMARKED, UNMARKED_BLOCK_FP8, StoredFormat
from .sources import Source
from .tensors import WEIGHT, TensorSpec

CODES = WEIGHT.removeprefix(".")
BIAS = "bias"

SCALES = ("weight_scale", "weight_scale_inv", "scale_weight")
"""Tensors that make their layer a quantized one, whatever dtype its weight has."""

ENDINGS = ("_scale", "_scales", "_scale_inv", ".scale")
"""Endings that turn the name of codes outside a layer into the name of their scale."""


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """A quantized layer: its names, dtypes, shapes and marker. `checks` finds out what is wrong with it."""

    name: str
    """Its full name; of codes that are no layer's weight, the name of their tensor."""
    marker: Marker
    """Its marker; empty where it has none, or one that cannot be read."""
    marked: bool
    """Whether it has a marker."""
    names: Mapping[str, str]
    """Full names of its tensors, the marker aside, by name within the layer; legacy names are translated."""
    tensors: Mapping[str, TensorSpec]
    """Dtypes and shapes of the same."""
    fault: str = ""
    """Sentence without full stop: why its marker cannot be read; else empty."""

    @cached_property
    def other_program(self) -> tuple[str, str] | None:
        """The program that wrote it in a scheme unknown to ComfyUI, and the full name of a tensor that shows it."""
        found = foreign.evidence(self.names)
        return None if found is None else (found[0], self.names[found[1]])

    @property
    def format(self) -> str:
        """Name of the format for people to read."""
        return self.other_program[0] if self.other_program else self._format or "unknown"

    @property
    def recipe_format(self) -> str:
        """Name of the format in recipes; `format` where it is in none."""
        stored = self.stored
        if stored is None:
            return self.format
        scale = self.tensors.get(stored.scale)
        return find_recipe_name(
            self.format,
            rotated=stored.rotation_group(self.marker) is not None,
            one_scale=scale is not None and math.prod(scale.shape) == 1,
            group_size=self.marker.group_size,
        )

    @cached_property
    def stored(self) -> StoredFormat | None:
        """Storage of its format; None for an unknown format."""
        if self.other_program:
            return None
        if not self.marked and self._format == BLOCK_FP8:
            return UNMARKED_BLOCK_FP8
        return STORED_FORMATS.get(self._format or "")

    @property
    def own_names(self) -> list[str]:
        """Full names of the tensors that make up its weight, the marker included."""
        return [*(full for name, full in self.names.items() if name != BIAS), self.name + SUFFIX]

    @property
    def _format(self) -> str | None:
        codes = self.tensors.get(CODES)
        if self.marked or codes is None:
            return self.marker.format
        if codes.dtype == torch.float8_e4m3fn and "weight_scale_inv" in self.tensors:
            return BLOCK_FP8
        return UNMARKED.get(codes.dtype)


def quantized_layers(source: Source) -> dict[str, StoredLayer]:
    """The layers that are quantized, by name; reads the markers and nothing else.

    Header entries win over markers, as in ComfyUI. Layers of 8-bit codes without a marker are found as well: older
    ``scaled_fp8`` files, FP8 values cast without a scale, and what other programs write. Nothing is refused here.
    """
    header = {} if header_problem(source.metadata) else from_header(source.metadata)
    tree = _Tree(source.tensors)
    owners = dict.fromkeys(owner for name in source.tensors if (owner := _owner(name, source.tensors)) is not None)
    return {layer: _layer(source, layer, header.get(layer), tree) for layer in {**owners, **header}}


def header_problem(metadata: Mapping[str, str]) -> str:
    """Say why the header's entries on quantized layers cannot be read.

    Returns:
        A sentence without its full stop; empty if they can be read.
    """
    try:
        from_header(metadata)
    except CheckpointError as error:
        return str(error).removesuffix(".")
    method = foreign.config_method(metadata)
    return f"The header has a {foreign.QUANTIZATION_CONFIG} of the method {method}" if method else ""


def without_quantization(metadata: Mapping[str, str]) -> dict[str, str]:
    """Drop the entries on quantized layers from a header's fields."""
    return {key: text for key, text in metadata.items() if key not in (HEADER_KEY, foreign.QUANTIZATION_CONFIG)}


def _owner(name: str, tensors: Mapping[str, TensorSpec]) -> str | None:
    """The layer that is quantized, judging by one of its tensors; None if the tensor shows no quantization."""
    if name.endswith(SUFFIX):
        return name.removesuffix(SUFFIX)
    spec, layer = tensors[name], name.removesuffix(WEIGHT)
    if not name.endswith(WEIGHT):
        scaled = any(name.removesuffix("_blocks") + ending in tensors for ending in ENDINGS)
        return name if scaled and _holds_codes(spec.dtype) else foreign.owner(name)
    if any(f"{layer}.{scale}" in tensors for scale in SCALES):
        return layer
    if not _holds_codes(spec.dtype):
        return None
    if len(spec.shape) == 2 or f"{layer}.scale" in tensors:
        return layer
    # Norms and convolutions of models that were cast to FP8 are no layers, and need no scale.
    return None if spec.dtype.is_floating_point or len(spec.shape) < 2 else layer


def _holds_codes(dtype: torch.dtype) -> bool:
    """Whether a weight in this dtype holds codes: FP8, or whole numbers."""
    if dtype.is_floating_point:
        return dtype.itemsize == 1
    return dtype != torch.bool and not dtype.is_complex


class _Tree:
    """The tensors of a source by what their names begin with."""

    def __init__(self, names: Iterable[str]) -> None:
        self._children: dict[str, list[str]] = {}
        for name in names:
            self._children.setdefault(name.rpartition(".")[0], []).append(name)
        self._parents = sorted(self._children)

    def parts(self, layer: str, marked: bool) -> dict[str, str]:
        """Full names of a layer's tensors by name within the layer, the marker aside.

        Names below ``weight`` come from other programs. Other names deeper than one level belong to other modules,
        and a layer with a marker has none: one of them is enough to refuse it.
        """
        codes = layer + WEIGHT
        own = [*self._children.get(layer, []), *self._children.get(codes, [])]
        own += self._children.get(f"{codes}.quant_state", [])
        below = {name.removeprefix(f"{layer}."): name for name in own + self._deeper(layer)[: int(marked)]}
        return {_present(part, below, marked): name for part, name in below.items() if part != NAME}

    def _deeper(self, layer: str) -> list[str]:
        """Some tensors that lie deeper than directly below a layer."""
        place = bisect_left(self._parents, f"{layer}.")
        found = self._parents[place : place + 1]
        return self._children[found[0]] if found and found[0].startswith(f"{layer}.") else []


def _present(part: str, below: Mapping[str, str], marked: bool) -> str:
    """The present name of a tensor; legacy names are read only where there is no marker."""
    present = part if marked else LEGACY_NAMES.get(part, part)
    return part if present in below else present


def _layer(source: Source, layer: str, header: Marker | None, tree: _Tree) -> StoredLayer:
    marked = header is not None or layer + SUFFIX in source.tensors
    marker, fault = (header or Marker(), "") if header or not marked else read_marker(source, layer)
    names = tree.parts(layer, marked)
    return StoredLayer(
        name=layer,
        marker=marker,
        marked=marked,
        names=names,
        tensors={part: source.tensors[name] for part, name in names.items()},
        fault=fault,
    )


def read_marker(source: Source, layer: str) -> tuple[Marker, str]:
    """Read the marker in a layer's own tensor.

    Returns:
        The marker, and a sentence without its full stop that says why it cannot be read (then the marker is empty).
    """
    spec = source.tensors[layer + SUFFIX]
    try:
        refuse_impossible(layer, spec.dtype, spec.shape)
        return Marker.from_tensor(layer, source.read(layer + SUFFIX)), ""
    except MarkerError as error:
        return Marker(), str(error).removesuffix(".")
