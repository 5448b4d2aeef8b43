"""Markers: how a checkpoint says which layers are quantized, and how.

A quantized layer holds a ``comfy_quant`` tensor, the UTF-8 bytes of a JSON object, and the file's header holds the
same objects for all layers (ComfyUI QUANTIZATION.md). Where both exist ComfyUI goes by the header, so they are always
written in agreement. No other module knows the names of the fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..bounded_json import parse_json
from ..errors import CheckpointError, MarkerError

NAME = "comfy_quant"
SUFFIX = f".{NAME}"
HEADER_KEY = "_quantization_metadata"

LARGEST = 64 * 1024
"""Bytes of a marker tensor, at most. Real ones hold about 100."""

NESTING = "params"
"""Field under which some programs nest the others; ComfyUI looks there for what it does not find at the top."""

REMARKS = frozenset({"orig_dtype", "per_row", "input_scale_calibrated"})
"""Fields that other programs write and that change nothing about how a layer is read (convert-to-quant, INT8-Fast)."""

DEFAULT_ROTATION = 256
"""Inputs per rotation group where a marker does not say (comfy/ops.py)."""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """The marker of one layer; absent fields are None."""

    format: str | None = None
    """Name of the format, a key of ComfyUI's ``QUANT_ALGOS``."""
    convrot: bool | None = None
    """Whether the weight is rotated in groups of inputs."""
    convrot_groupsize: int | None = None
    """Inputs per rotation group."""
    group_size: int | None = None
    """Inputs that share a scale; the side of a square block for ``int8_blockwise``."""
    full_precision_matrix_mult: bool | None = None
    """Whether ComfyUI dequantizes the weight and multiplies in 16 bits."""
    linear_dtype: str | None = None
    """Type of the inputs in the product of a ``convrot_w4a4`` layer: int4 or int8."""
    num_experts: int | None = None
    """Number of weights in a bank of experts."""
    orig_shape: tuple[int, ...] | None = None
    """Shape before padding. ComfyUI knows it from the model; a reader of the file alone does not."""
    remarks: Mapping[str, Any] = field(default_factory=dict)
    """The fields named in `REMARKS`."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Fields of any other name, or with a value of the wrong type. They may change the weights: refuse them by name."""

    @property
    def rotation_group(self) -> int | None:
        """Inputs per rotation group; None where the weight is not rotated."""
        return (self.convrot_groupsize or DEFAULT_ROTATION) if self.convrot else None

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Marker:
        """The marker that a JSON object holds; what cannot be understood lands in `unknown`."""
        known: dict[str, Any] = {}
        remarks: dict[str, Any] = {}
        unknown: dict[str, Any] = {}
        for name, value in _flattened(stated).items():
            if name in _ALLOWS and _ALLOWS[name](value):
                known[name] = tuple(value) if isinstance(value, list) else value
            else:
                (remarks if name in REMARKS else unknown)[name] = value
        return cls(**known, remarks=remarks, unknown=unknown)

    def to_json(self) -> dict[str, Any]:
        """The JSON object; `from_json` gives the same marker back."""
        stated = {name: value for name in _ALLOWS if (value := getattr(self, name)) is not None}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in stated.items()}
        return {**listed, **self.remarks, **self.unknown}

    @classmethod
    def from_tensor(cls, layer: str, tensor: Tensor) -> Marker:
        """The marker in a layer's ``comfy_quant`` tensor, on any device.

        Raises:
            MarkerError: naming the layer, where the tensor does not hold a JSON object.
        """
        refuse_impossible(layer, tensor.dtype, tensor.shape)
        try:
            stated = parse_json(bytes(tensor.tolist()))
        except ValueError:
            stated = None
        if not isinstance(stated, dict):
            raise MarkerError(f"The marker of layer '{layer}' is not a JSON object.")
        return cls.from_json(stated)

    def to_tensor(self) -> Tensor:
        """The marker as uint8 ``[bytes]``; equal markers give equal bytes."""
        return torch.tensor(list(self._to_bytes()), dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """Size of `to_tensor`."""
        return len(self._to_bytes())

    def _to_bytes(self) -> bytes:
        return json.dumps(self.to_json(), sort_keys=True).encode()

    def differences(self, other: Marker) -> Iterator[tuple[str, Any, Any]]:
        """Name, value here and value there of the fields that say how to load the layer and do not agree."""
        names = [entry.name for entry in fields(self) if entry.name not in ("num_experts", "orig_shape", "remarks")]
        for name in names:
            here, there = getattr(self, name), getattr(other, name)
            if (here or None) != (there or None):
                yield name, here, there


def refuse_impossible(layer: str, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Raise MarkerError for a tensor that cannot be a marker, before it is read."""
    if dtype != torch.uint8 or len(shape) != 1 or shape[0] > LARGEST:
        kind = f"{str(dtype).removeprefix('torch.')} {list(shape)}"
        raise MarkerError(f"The marker of layer '{layer}' is {kind}, not at most {LARGEST} bytes of text.")


def to_header(markers: Mapping[str, Marker]) -> str:
    """The header's text for the markers of all layers."""
    layers = {layer: marker.to_json() for layer, marker in markers.items()}
    return json.dumps({"format_version": "1.0", "layers": layers}, sort_keys=True)


def from_header(metadata: Mapping[str, str]) -> dict[str, Marker]:
    """The markers that a file's header holds, by layer; empty where it holds none.

    Raises:
        CheckpointError: where the entry is not what ComfyUI reads.
    """
    if HEADER_KEY not in metadata:
        return {}
    try:
        layers = parse_json(metadata[HEADER_KEY])["layers"]
        return {layer: Marker.from_json({**stated}) for layer, stated in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"The header entry {HEADER_KEY} is not what ComfyUI reads.") from None


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


_ALLOWS: Mapping[str, Callable[[Any], bool]] = {
    "format": _is_text,
    "convrot": _is_bool,
    "convrot_groupsize": _is_whole,
    "group_size": _is_whole,
    "full_precision_matrix_mult": _is_bool,
    "linear_dtype": _is_text,
    "num_experts": _is_whole,
    "orig_shape": _is_shape,
}
"""Which values each field may have."""

_NESTED = frozenset(_ALLOWS) - {"format", "full_precision_matrix_mult"} | REMARKS


def _flattened(stated: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its nested fields at the top, where all of them may be nested."""
    nested = stated.get(NESTING)
    if not isinstance(nested, dict) or not nested.keys() <= _NESTED:
        return dict(stated)
    return {**nested, **{name: value for name, value in stated.items() if name != NESTING}}
