"""Quantized checkpoints read as floating point."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import AlreadyQuantizedError, CheckpointError
from ..formats import FORMATS, Format, int8_blockwise, marker
from ..formats.dequantize import dequantize_layer
from ..formats.rotation import GROUP_SIZES
from .sources import Source
from .tensors import WEIGHT, Spec, TensorSpec

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
LEGACY_MARK = "scaled_fp8"
"""Empty tensor that older ComfyUI files carry beside ``.scale_weight`` and ``.scale_input``."""
SCALES = (".weight_scale", ".scale_weight")
COMPANIONS = (marker.SUFFIX, *SCALES, ".input_scale", ".scale_input")
UNMARKED = {
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.int8: "int8_tensorwise",
}
"""What a layer stored in this dtype without a marker is taken for."""
DEQUANTIZED = torch.bfloat16


class DequantizedSource:
    """A source whose quantized layers (and whatever else is stored in FP8) read as ``dtype``; scales and markers are
    gone.
    """

    def __init__(self, source: Source, layers: Mapping[str, marker.Marker], dtype: torch.dtype = DEQUANTIZED) -> None:
        self._source = source
        self._dtype = dtype
        self._readers = {layer + WEIGHT: _reader(source, layer, fields) for layer, fields in layers.items()}
        self.metadata = {k: v for k, v in source.metadata.items() if k != marker.HEADER_KEY}
        gone = {layer + suffix for layer in layers for suffix in COMPANIONS}
        self.tensors = {
            name: self._float_spec(name, spec)
            for name, spec in source.tensors.items()
            if name not in gone and name.rpartition(".")[2] != LEGACY_MARK
        }

    def read(self, name: str) -> Tensor:
        if name in self._readers:
            return self._readers[name][1]().to(self._dtype)
        return self._source.read(name).to(self.tensors[name].dtype)

    def sha256(self) -> str | None:
        return self._source.sha256()

    def _float_spec(self, name: str, spec: TensorSpec) -> TensorSpec:
        if name in self._readers:
            return Spec(self._dtype, self._readers[name][0])
        return Spec(self._dtype, spec.shape) if spec.dtype in FLOAT8 else spec


def quantized_layers(source: Source) -> dict[str, marker.Marker]:
    """The layers that are already quantized, with their markers; header entries win, as in ComfyUI.

    Layers stored in FP8 or INT8 without a marker are found too: legacy ``scaled_fp8`` files, and FP8 values cast
    without a scale.
    """
    found: dict[str, marker.Marker] = {}
    for name, spec in source.tensors.items():
        if name.endswith(marker.SUFFIX):
            layer = name.removesuffix(marker.SUFFIX)
            found[layer] = marker.from_tensor(layer, source.read(name))
        elif name.endswith(WEIGHT) and spec.dtype in UNMARKED and len(spec.shape) == 2:
            found.setdefault(name.removesuffix(WEIGHT), {"format": UNMARKED[spec.dtype]})
    return found | marker.from_header(source.metadata)


def as_float(source: Source, dequantize: bool, dtype: torch.dtype = DEQUANTIZED) -> Source:
    """The source itself if nothing in it is quantized; else dequantized if asked, else AlreadyQuantizedError.

    ``dtype`` is that of the layers that are dequantized.
    """
    layers = quantized_layers(source)
    if not layers:
        return source
    if not dequantize:
        formats = ", ".join(sorted({str(fields.get("format")) for fields in layers.values()}))
        raise AlreadyQuantizedError(
            f"{len(layers)} layers are already quantized ({formats}), '{next(iter(layers))}' first; "
            "start from the float model, or ask to dequantize first."
        )
    return DequantizedSource(source, layers, dtype)


def _reader(source: Source, layer: str, fields: marker.Marker) -> tuple[tuple[int, int], Callable[[], Tensor]]:
    """The float shape of a quantized layer and a function that reads it as float32."""
    spec = source.tensors.get(layer + WEIGHT)
    fmt = None if spec is None else _written_by(layer, fields, spec)
    scale = next((layer + suffix for suffix in SCALES if layer + suffix in source.tensors), None)
    if spec is None or fmt is None or (scale is None and spec.dtype not in FLOAT8):
        raise AlreadyQuantizedError(
            f"Layer '{layer}' is quantized as '{fields.get('format')}', which cannot be dequantized here; "
            "start from the float model."
        )
    group, (rows, columns) = _geometry(layer, fields, spec)
    if scale is not None and not _scale_fits(fmt, source.tensors[scale], spec):
        raise CheckpointError(f"The scale of layer '{layer}' does not fit its weight; the file is damaged.")

    def read() -> Tensor:
        codes = source.read(layer + WEIGHT)
        width = (
            torch.ones(()) if scale is None else fmt.unpack_scale(source.read(scale), (spec.shape[0], spec.shape[1]))
        )
        if width.dim() == 1:
            width = width.reshape(-1, 1)
        return dequantize_layer(codes, width, fmt, group, (rows, columns))

    return (rows, columns), read


def _geometry(layer: str, fields: marker.Marker, spec: TensorSpec) -> tuple[int | None, tuple[int, int]]:
    """Rotation group and float shape from a marker; CheckpointError where they do not fit the stored weight."""
    options = marker.options(fields)
    group = options.get("convrot_groupsize", 256) if options.get("convrot") else None
    shape = fields.get("orig_shape", list(spec.shape))
    fine = isinstance(shape, list) and len(shape) == 2 and all(type(size) is int for size in shape)
    fine = fine and all(0 <= size <= stored for size, stored in zip(shape, spec.shape, strict=True))
    if not fine or not (group is None or (group in GROUP_SIZES and spec.shape[1] % group == 0)):
        raise CheckpointError(f"The marker of layer '{layer}' does not fit its weight; the file is damaged.")
    return group, (shape[0], shape[1])


def _scale_fits(fmt: Format, scale: TensorSpec, weight: TensorSpec) -> bool:
    rows, columns = weight.shape
    if fmt.power_of_two:
        return (scale.dtype.itemsize, tuple(scale.shape)) == (1, fmt.layout((rows, columns))["weight_scale"][1])
    if fmt.group_size is not None:
        return tuple(scale.shape) == fmt.granularity.scale_shape((rows, columns))
    return tuple(scale.shape) in ((), (1,), (1, 1), (rows,), (rows, 1))


def _written_by(layer: str, fields: marker.Marker, spec: TensorSpec) -> Format | None:
    """A format with the layer's marker and storage; rows that differ in granularity only read alike, as scales
    broadcast. Blocks may be of any size.
    """
    candidates = (f for f in FORMATS.values() if f.marker == fields.get("format") and f.grid.dtype == spec.dtype)
    found = next(candidates, None) if len(spec.shape) == 2 else None
    if found is None or found.group_size is None:
        return found
    size = marker.options(fields).get("group_size", found.group_size)
    if type(size) is not int or size < 1:
        raise CheckpointError(f"The marker of layer '{layer}' gives blocks of {size!r}; the file is damaged.")
    return int8_blockwise(size)
