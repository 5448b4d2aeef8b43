"""Contents of a checkpoint: formats, shapes, bytes, how it was made, and whether ComfyUI can load it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..files import Checkpoint, open_checkpoint
from ..files.checks import lacks_scales, layer_problem, scale_problem
from ..files.gguf import GgufHeader, is_gguf, parse_gguf, read_gguf
from ..files.partial import PartialFile, begins_as_gguf, open_partial
from ..files.quantized import CODES, StoredLayer, header_problem, quantized_layers, read_marker
from ..files.strict_json import quoted
from ..files.tensors import WEIGHT, dtype_name, is_bank
from ..formats import pack_notice
from ..formats.marker import SUFFIX, Marker, from_header
from ..formats.stored import LEGACY_MARK
from ..notices import render
from ..planning.file_kinds import Obstacle
from ..planning.loading import ask
from ..planning.profiles import recognise
from .provenance import Provenance

GGUF_PLAIN: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""GGUF's names of types that are not quantized, as dtypes are called here."""

GGUF_WAY_OUT = (
    "It is a GGUF file of the architecture {name}, which ComfyUI loads only with a pack for GGUF. It cannot be "
    "quantized again here: quantize the safetensors file in 16 bits that it was made from."
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A quantized layer with all its tensors, or one tensor that is not quantized."""

    name: str
    quantized: bool
    format: str
    """The marker's, or the program that wrote it; of a tensor that is not quantized, its dtype."""
    shape: tuple[int, ...]
    """As stored."""
    nbytes: int
    """Of all tensors of the entry."""
    scale: tuple[int, ...] | None = None
    """Shape of the scale."""
    group: int | None = None
    """Inputs per rotation group."""
    block: int | None = None
    """Group size in the marker: side of the square blocks, or inputs, that share a scale."""
    experts: int | None = None
    """Number of weights in a bank of experts."""
    full_precision: bool = False
    """Whether ComfyUI is asked to multiply in 16 bits."""
    input_scale: bool = False
    """Whether it has a static input scale."""
    recipe_format: str | None = None
    """The name that recipes have for the format, if it is another one."""

    @property
    def shown_format(self) -> str:
        """Name of the format for people to read."""
        return self.recipe_format or self.format


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Result of `inspect_file`."""

    path: str
    profile: str
    """Name of the recognised model."""
    entries: list[Entry]
    """The quantized layers first."""
    metadata: dict[str, str]
    """The header's text fields."""
    provenance: Provenance | None
    """Provenance; None for a file that this pack did not write."""
    needs: dict[str, str] = field(default_factory=dict)
    """Programs that run each format in the file, if known."""
    obstacles: list[str] = field(default_factory=list)
    """Why ComfyUI alone would not run the file as it is meant, in sentences; empty if it does."""
    disagreements: list[str] = field(default_factory=list)
    """Contradictions between the markers and the header."""
    refusal: str = ""
    """Why a file without quantized layers cannot be quantized for ComfyUI; empty: it can."""
    unread: int = 0
    """Number of layers with scales that were not at hand, so that their values are not checked."""

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)

    def by_format(self) -> dict[tuple[str, str], list[Entry]]:
        """The entries of each format, by `Entry.shown_format` and `Entry.format`."""
        alike: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            alike.setdefault((entry.shown_format, entry.format), []).append(entry)
        return alike

    def totals(self) -> dict[str, dict[str, int]]:
        """Count and bytes for each format."""
        totals: dict[str, dict[str, int]] = {}
        for entry in self.entries:
            row = totals.setdefault(entry.format, {"count": 0, "bytes": 0})
            row["count"] += 1
            row["bytes"] += entry.nbytes
        return totals

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"bytes": self.nbytes, "totals": self.totals()}


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Look into a checkpoint; reads the header, the markers and the scales, no weights; of a GGUF file the header.

    Raises:
        CheckpointError: for any other file. Quantized layers never fail: their faults are obstacles.
    """
    if is_gguf(path):
        return _inspect_gguf(str(path), read_gguf(path))
    with open_checkpoint(path) as checkpoint:
        return _inspect_checkpoint(checkpoint, ask(checkpoint.shapes, checkpoint.path).obstacle)


def inspect_partial(file: PartialFile) -> Inspection:
    """As `inspect_file`, of a file of which only the bytes of `find_needed` are at hand.

    Raises:
        CheckpointError: as `inspect_file`; `MissingBytes` if something is needed.
    """
    if begins_as_gguf(file):
        return _inspect_gguf(str(file.path), parse_gguf(file))
    checkpoint, missing = open_partial(file)
    return _inspect_checkpoint(checkpoint, ask(checkpoint.shapes, file.path, alone=True).obstacle, missing)


def _inspect_checkpoint(checkpoint: Checkpoint, obstacle: Obstacle | None, missing: Collection[str] = ()) -> Inspection:
    """Inspect an open file; ``missing`` names tensors that cannot be read."""
    layers = quantized_layers(checkpoint)
    return Inspection(
        path=str(checkpoint.path),
        profile=recognise(checkpoint.shapes).profile.name,
        entries=list(_entries(checkpoint, layers)),
        metadata=dict(checkpoint.metadata),
        provenance=Provenance.from_metadata(checkpoint.metadata),
        needs=_needs(layers.values()),
        obstacles=list(_obstacles(checkpoint, layers, obstacle, missing)),
        disagreements=list(_disagreements(checkpoint)),
        refusal="" if layers or obstacle is None else str(obstacle),
        unread=sum(lacks_scales(layer, missing) for layer in layers.values()),
    )


def _inspect_gguf(path: str, header: GgufHeader) -> Inspection:
    entries = [
        Entry(
            name=tensor.name,
            quantized=tensor.is_quantized,
            format=tensor.type if tensor.is_quantized else GGUF_PLAIN.get(tensor.type, tensor.type),
            shape=tensor.shape,
            nbytes=tensor.nbytes,
        )
        for tensor in header.tensors
    ]
    return Inspection(
        path=path,
        profile=recognise({tensor.name: tensor.shape for tensor in header.tensors}).profile.name,
        entries=sorted(entries, key=lambda entry: not entry.quantized),
        metadata=dict(header.fields),
        provenance=None,
        obstacles=[GGUF_WAY_OUT.format(name=quoted(header.fields.get("general.architecture", "unknown")))],
    )


def _needs(layers: Iterable[StoredLayer]) -> dict[str, str]:
    return {layer.format: layer.stored.needs for layer in layers if layer.stored is not None and layer.stored.needs}


def _entries(checkpoint: Checkpoint, layers: Mapping[str, StoredLayer]) -> Iterator[Entry]:
    owned: set[str] = set()
    for layer in layers.values():
        own = [name for name in layer.own_names if name in checkpoint.tensors and name not in owned]
        owned.update(own)
        if own:
            yield _layer_entry(checkpoint, layer, own)
    for name, info in checkpoint.tensors.items():
        if name not in owned:
            yield Entry(
                name=name,
                quantized=False,
                format=dtype_name(info.dtype),
                shape=info.shape,
                nbytes=info.nbytes,
                experts=info.shape[0] if is_bank(name, info.shape) else None,
            )


def _layer_entry(checkpoint: Checkpoint, layer: StoredLayer, own: Sequence[str]) -> Entry:
    """The entry of a layer; ``own`` names its tensors."""
    infos = [checkpoint.tensors[name] for name in own]
    codes = checkpoint.tensors.get(layer.name + WEIGHT) or max(infos, key=lambda info: info.nbytes)
    scale = None if layer.stored is None else layer.tensors.get(layer.stored.scale)
    return Entry(
        name=layer.name,
        quantized=True,
        format=layer.format,
        shape=codes.shape,
        nbytes=sum(info.nbytes for info in infos),
        scale=None if scale is None else tuple(scale.shape),
        group=None if layer.stored is None else layer.stored.rotation_group(layer.marker),
        block=layer.marker.group_size,
        experts=codes.shape[0] if len(codes.shape) == 3 else None,
        full_precision=layer.marker.full_precision_matrix_mult is True,
        input_scale="input_scale" in layer.tensors,
        recipe_format=None if layer.recipe_format == layer.format else layer.recipe_format,
    )


def _obstacles(
    checkpoint: Checkpoint, layers: Mapping[str, StoredLayer], obstacle: Obstacle | None, missing: Collection[str]
) -> Iterator[str]:
    problem = header_problem(checkpoint.metadata)
    if problem:
        yield f"{problem}."
    if layers and obstacle is not None:
        yield str(obstacle)
    needed = pack_notice(layer.marker.format for layer in layers.values())
    if needed is not None:
        yield render(needed)
    legacy = any(name.rpartition(".")[2] == LEGACY_MARK for name in checkpoint.tensors)
    for layer in layers.values():
        problem = layer_problem(layer) or scale_problem(checkpoint, layer, missing) or _without_marker(layer, legacy)
        if problem:
            yield f"{problem}."


def _without_marker(layer: StoredLayer, legacy: bool) -> str:
    """Why ComfyUI does not read a layer without a marker; empty where it does.

    FP8 that is only cast, and the older files with a scaled_fp8 tensor (``legacy``), need none.
    """
    codes = layer.tensors[CODES]
    cast = layer.stored is None or layer.stored.scale not in layer.tensors
    if layer.marked or (codes.dtype.is_floating_point and (legacy or cast)):
        return ""
    return f"Layer '{layer.name}' is stored as {dtype_name(codes.dtype)} ({layer.format}) and has no marker"


def _disagreements(checkpoint: Checkpoint) -> Iterator[str]:
    header = {} if header_problem(checkpoint.metadata) else from_header(checkpoint.metadata)
    marked = {name.removesuffix(SUFFIX) for name in checkpoint.tensors if name.endswith(SUFFIX)}
    if not header or not marked:
        return  # either alone is enough
    for layer in sorted(header.keys() | marked):
        if layer not in marked:
            yield f"layer '{layer}' is in the header and has no marker"
        elif layer not in header:
            yield f"layer '{layer}' has a marker and is not in the header"
        else:
            yield from _differences(checkpoint, layer, header[layer])


def _differences(checkpoint: Checkpoint, layer: str, header: Marker) -> Iterator[str]:
    marker, fault = read_marker(checkpoint, layer)
    if fault:
        yield fault
        return
    for name, here, there in marker.differences(header):
        yield f"layer '{layer}': {name} is {quoted(here)} in the marker and {quoted(there)} in the header"
