"""What is in a checkpoint: formats, shapes, bytes, how it was made, and whether ComfyUI can load it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..files import Checkpoint, open_checkpoint
from ..files.dequantized import LEGACY_MARK, quantized_layers
from ..files.tensors import WEIGHT
from ..formats import FORMATS, marker, pack_note
from ..planning.profiles import recognise
from .provenance import Provenance


@dataclass(frozen=True)
class HostFormat:
    """How ComfyUI stores a format: the dtype of the codes and the tensors beside them."""

    dtype: torch.dtype
    companions: tuple[str, ...] = ("weight_scale",)


HOST_FORMATS: dict[str, HostFormat] = {
    "float8_e4m3fn": HostFormat(torch.float8_e4m3fn),
    "float8_e5m2": HostFormat(torch.float8_e5m2),
    "mxfp8": HostFormat(torch.float8_e4m3fn),
    "nvfp4": HostFormat(torch.uint8, ("weight_scale", "weight_scale_2")),
    "int8_tensorwise": HostFormat(torch.int8),
    "convrot_w4a4": HostFormat(torch.int8),
    "asym_w4a8_int8": HostFormat(torch.int8, ("weight_s_rel", "weight_s_channel")),
}
"""The formats that ComfyUI loads without any pack (``comfy/quant_ops.py`` QUANT_ALGOS, ``comfy/ops.py``; 0.33)."""

PACK_FORMATS: dict[str, HostFormat] = {
    fmt.marker: HostFormat(fmt.grid.dtype) for fmt in FORMATS.values() if not fmt.stock
}
"""The formats that ComfyUI loads while this pack is installed."""

OWN_TENSORS = (
    "weight",
    *sorted({name for fmt in HOST_FORMATS.values() for name in fmt.companions}),
    "input_scale",
    "scale_weight",
    "scale_input",
    "weight_codebook",
    "pre_quant_scale",
    marker.SUFFIX.removeprefix("."),
)
"""What belongs to a quantized layer, beside its bias."""

READ_BY_HOST = ("format", "convrot", "convrot_groupsize", "group_size", "full_precision_matrix_mult")
"""The fields of a marker that say how to load the layer."""


UNSUPPORTED = "unsupported"
"""The profile of the text encoders that ComfyUI reads wrongly when they are quantized."""


@dataclass(frozen=True)
class Entry:
    """A quantized layer with all its tensors, or one tensor that is not quantized.

    format: the marker's, or the dtype. shape: as stored. scale: shape of the scale. group: rotation group. block: side
    of the square blocks that share a scale, as the marker tells it.
    """

    name: str
    quantized: bool
    format: str
    shape: tuple[int, ...]
    nbytes: int
    scale: tuple[int, ...] | None = None
    group: int | None = None
    block: int | None = None
    full_precision: bool = False
    input_scale: bool = False


@dataclass(frozen=True)
class Inspection:
    """profile: what the model was recognised as. entries: the quantized layers first. provenance: None
    for a file that this pack did not write. obstacles: why ComfyUI alone would not load the file, empty if it
    does. disagreements: where the markers and the header do not say the same.
    """

    path: str
    profile: str
    entries: list[Entry]
    metadata: dict[str, str]
    provenance: Provenance | None
    obstacles: list[str] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)

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
    """Look into a checkpoint; reads the header and the markers, no weights. Raises CheckpointError."""
    with open_checkpoint(path) as checkpoint:
        layers = quantized_layers(checkpoint)
        owners = {f"{layer}.{name}": layer for layer in layers for name in OWN_TENSORS}
        entries: list[Entry] = []
        for name, info in checkpoint.tensors.items():
            if name not in owners:
                entries.append(Entry(name, False, _dtype_name(info.dtype), info.shape, info.nbytes))
            elif name.endswith(WEIGHT):
                entries.append(_layer_entry(checkpoint, owners[name], layers[owners[name]]))
        profile = recognise(checkpoint.shapes).profile.name
        return Inspection(
            path=str(checkpoint.path),
            profile=profile,
            entries=sorted(entries, key=lambda entry: not entry.quantized),
            metadata=dict(checkpoint.metadata),
            provenance=Provenance.from_metadata(checkpoint.metadata),
            obstacles=list(_obstacles(checkpoint, layers, profile)),
            disagreements=list(_disagreements(checkpoint)),
        )


def _layer_entry(checkpoint: Checkpoint, layer: str, fields: marker.Marker) -> Entry:
    own = {name: checkpoint.tensors.get(f"{layer}.{name}") for name in OWN_TENSORS}
    scale = own["weight_scale"] or own["scale_weight"]
    options = marker.options(fields)
    return Entry(
        name=layer,
        quantized=True,
        format=str(fields.get("format")),
        shape=checkpoint.shapes[layer + WEIGHT],
        nbytes=sum(info.nbytes for info in own.values() if info is not None),
        scale=None if scale is None else scale.shape,
        group=options.get("convrot_groupsize", 256) if options.get("convrot") else None,
        block=options.get("group_size"),
        full_precision=bool(fields.get("full_precision_matrix_mult")),
        input_scale=own["input_scale"] is not None or own["scale_input"] is not None,
    )


def _obstacles(checkpoint: Checkpoint, layers: Mapping[str, marker.Marker], profile: str) -> Iterator[str]:
    if layers and profile == UNSUPPORTED:
        yield "it is a text encoder of which ComfyUI loads no quantized weights"
    needed = pack_note(str(fields.get("format")) for fields in layers.values())
    if needed:
        yield needed
    legacy = any(name.rpartition(".")[2] == LEGACY_MARK for name in checkpoint.tensors)
    marked = {name.removesuffix(marker.SUFFIX) for name in checkpoint.tensors if name.endswith(marker.SUFFIX)}
    marked |= marker.from_header(checkpoint.metadata).keys()
    for layer, fields in layers.items():
        what = _obstacle(checkpoint, layer, fields, marked=layer in marked, legacy=legacy)
        if what is not None:
            yield f"layer '{layer}' {what}"


def _obstacle(checkpoint: Checkpoint, layer: str, fields: marker.Marker, *, marked: bool, legacy: bool) -> str | None:
    weight, name = checkpoint.tensors.get(layer + WEIGHT), fields.get("format")
    if weight is None:
        return "is marked as quantized and has no weight"
    if not marked:
        # FP8 that is only cast, and the older files with a scaled_fp8 tensor, are read without markers.
        plain = weight.dtype != torch.int8 and (legacy or f"{layer}.weight_scale" not in checkpoint.tensors)
        return None if plain else f"is stored as {_dtype_name(weight.dtype)} and has no marker"
    host = (HOST_FORMATS | PACK_FORMATS).get(str(name))
    if host is None:
        return f"has the format {name!r}, which only a pack can add"
    if weight.dtype != host.dtype:
        return f"is marked {name} and stored as {_dtype_name(weight.dtype)}"
    missing = [companion for companion in host.companions if f"{layer}.{companion}" not in checkpoint.tensors]
    return f"is marked {name} and lacks {', '.join(missing)}" if missing else None


def _disagreements(checkpoint: Checkpoint) -> Iterator[str]:
    header = marker.from_header(checkpoint.metadata)
    names = [name for name in checkpoint.tensors if name.endswith(marker.SUFFIX)]
    markers = {name.removesuffix(marker.SUFFIX): name for name in names}
    if not header or not markers:
        return  # either alone is enough
    for layer in sorted(header.keys() | markers.keys()):
        if layer not in markers:
            yield f"layer '{layer}' is in the header and has no marker"
        elif layer not in header:
            yield f"layer '{layer}' has a marker and is not in the header"
        else:
            fields = marker.from_tensor(layer, checkpoint.read(markers[layer]))
            yield from _differences(layer, fields, header[layer])


def _differences(layer: str, fields: marker.Marker, header: marker.Marker) -> Iterator[str]:
    for name in READ_BY_HOST:
        ours, theirs = fields.get(name), header.get(name)
        if ours != theirs:
            yield f"layer '{layer}': {name} is {ours!r} in the marker and {theirs!r} in the header"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
