"""Quantized checkpoints read as floating point."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from ..errors import AlreadyQuantizedError, UnreadableLayerError
from ..formats import FORMATS
from ..formats.dequantize import restore
from ..formats.rotation import largest_group
from ..formats.stored import LEGACY_MARK
from .checks import decoding_problem, layer_problem, scale_problem
from .quantized import CODES, StoredLayer, header_problem, quantized_layers, without_quantization
from .sources import Source
from .tensors import WEIGHT, Spec, TensorSpec, dtype_name, is_finite

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
DEQUANTIZED = torch.bfloat16

INT8 = FORMATS["int8_convrot"].comfyui_name

ADVICE = "start from the float model"


class DequantizedSource:
    """A source whose quantized layers, and other tensors stored in FP8, read as floating point.

    Scales and markers are gone.
    """

    def __init__(self, source: Source, layers: Mapping[str, StoredLayer], dtype: torch.dtype = DEQUANTIZED) -> None:
        """
        Args:
            source: what is read.
            layers: its quantized layers, as `quantized_layers` finds them.
            dtype: of the dequantized tensors.

        Raises:
            UnreadableLayerError: where a layer cannot be dequantized exactly.
        """
        for layer in layers.values():
            refuse_unreadable(layer)
        self.path = source.path
        self._source = source
        self._dtype = dtype
        self._layers = {layer + WEIGHT: stored for layer, stored in layers.items()}
        self.metadata = without_quantization(source.metadata)
        gone = {name for layer in layers.values() for name in layer.own_names} - self._layers.keys()
        self.tensors = {
            name: self._float_spec(name, spec)
            for name, spec in source.tensors.items()
            if name not in gone and name.rpartition(".")[2] != LEGACY_MARK
        }

    @property
    def dequantized(self) -> Set[str]:
        """The weights that are stored quantized."""
        return self._layers.keys()

    def read(self, name: str) -> Tensor:
        """A tensor in floating point.

        Raises:
            UnreadableLayerError: where a scale of the layer is not finite and above zero, or its weights overflow.
            CheckpointError: where the source cannot be read.
        """
        layer = self._layers.get(name)
        if layer is None:
            return self._source.read(name).to(self.tensors[name].dtype)
        return _read_layer(self._source, layer, self._dtype)

    def sha256(self) -> str | None:
        return self._source.sha256()

    def _float_spec(self, name: str, spec: TensorSpec) -> TensorSpec:
        if name in self._layers:
            return Spec(self._dtype, float_shape(self._layers[name]))
        return Spec(self._dtype, spec.shape) if spec.dtype in FLOAT8 else spec


def as_float(
    source: Source, dequantize: bool, dtype: torch.dtype = DEQUANTIZED, *, rotation: int | None = None
) -> Source:
    """A source of floating-point weights.

    Args:
        source: what is read.
        dequantize: whether quantized layers are dequantized; else they are refused.
        dtype: of the layers that are dequantized.
        rotation: accept a source of INT8 ConvRot layers alone, rotated in the largest groups up to this, and read it in
            float32: its weights convert to a format with the same rotation. None: as other sources.

    Returns:
        The source itself where nothing in it is quantized.

    Raises:
        AlreadyQuantizedError: where layers are quantized and are not to be dequantized.
        UnreadableLayerError: where a layer, or the header's account of the layers, cannot be read exactly.
    """
    problem = header_problem(source.metadata)
    if problem:
        raise UnreadableLayerError(f"{problem}; {ADVICE}.")
    layers = quantized_layers(source)
    if not layers:
        return source
    if dequantize:
        return DequantizedSource(source, layers, dtype)
    for layer in layers.values():
        refuse_unreadable(layer)
    if rotation is not None and all(is_rotated_int8(layer, rotation) for layer in layers.values()):
        return DequantizedSource(source, layers, torch.float32)
    formats = ", ".join(sorted({layer.format for layer in layers.values()}))
    raise AlreadyQuantizedError(
        f"{len(layers)} layers are already quantized ({formats}), '{next(iter(layers))}' first; "
        f"{ADVICE}, or ask to dequantize first."
    )


def is_rotated_int8(layer: StoredLayer, limit: int) -> bool:
    """Whether a layer that is not refused is INT8 ConvRot, rotated in the largest groups up to ``limit``."""
    group = layer.marker.rotation_group
    return layer.marker.format == INT8 and group is not None and group == largest_group(float_shape(layer)[1], limit)


def refuse_unreadable(layer: StoredLayer) -> None:
    """Raise UnreadableLayerError, naming the layer and what is wrong, where it cannot be dequantized exactly."""
    problem = layer_problem(layer) or decoding_problem(layer)
    if problem:
        raise UnreadableLayerError(f"{problem}; {ADVICE}.")


def float_shape(layer: StoredLayer) -> tuple[int, int]:
    """``(N, K)`` of the float weight of a layer that is not refused."""
    stored = layer.stored
    assert stored is not None
    rows, columns = layer.marker.orig_shape or stored.padded_shape(layer.tensors[CODES].shape) or (0, 0)
    return rows, columns


def _read_layer(source: Source, layer: StoredLayer, dtype: torch.dtype) -> Tensor:
    """The weight ``[N, K]`` of a layer that is not refused. NaN among its codes stays."""
    problem = scale_problem(source, layer)
    if problem:
        raise UnreadableLayerError(f"{problem}; {ADVICE}.")
    stored = layer.stored
    assert stored is not None  # else it is refused
    tensors = {name: source.read(full) for name, full in layer.names.items() if name in (CODES, *stored.companions)}
    decoded = stored.decode(layer.marker)(tensors)
    weight = restore(decoded, stored.rotation_group(layer.marker), float_shape(layer)).to(dtype)
    if not is_finite(weight) and is_finite(tensors[CODES]):
        raise UnreadableLayerError(
            f"Layer '{layer.name}' holds weights that {dtype_name(dtype)} cannot hold; {ADVICE}."
        )
    return weight
