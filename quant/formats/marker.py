"""How a checkpoint says which layers are quantized: a ``comfy_quant`` tensor in each, and one header entry for all.

ComfyUI reads both (QUANTIZATION.md); where both exist the header wins, so they are always written in agreement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

SUFFIX = ".comfy_quant"
HEADER_KEY = "_quantization_metadata"

Marker = dict[str, Any]


def to_tensor(fields: Mapping[str, Any]) -> Tensor:
    """The marker as the UTF-8 bytes of its JSON, uint8 ``[bytes]``."""
    return torch.tensor(list(json.dumps(fields, sort_keys=True).encode()), dtype=torch.uint8)


def from_tensor(layer: str, tensor: Tensor) -> Marker:
    """The JSON object that a marker tensor holds; CheckpointError naming the layer if it holds none."""
    try:
        fields = json.loads(bytes(tensor.tolist()))
    except (ValueError, TypeError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise CheckpointError(f"The marker of layer '{layer}' is not a JSON object; the file is damaged.")
    return fields


def options(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that say how a layer is stored; some programs nest them under ``params``."""
    nested = fields.get("params")
    return nested if isinstance(nested, dict) else fields


def to_header(markers: Mapping[str, Mapping[str, Any]]) -> str:
    return json.dumps({"format_version": "1.0", "layers": markers}, sort_keys=True)


def from_header(metadata: Mapping[str, str]) -> dict[str, Marker]:
    """Markers by layer from a file's metadata; empty if it has none, CheckpointError if they cannot be read."""
    if HEADER_KEY not in metadata:
        return {}
    try:
        layers = json.loads(metadata[HEADER_KEY])["layers"]
        return {str(layer): dict(fields) for layer, fields in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"The header entry {HEADER_KEY} is not what ComfyUI writes; the file is damaged."
        ) from None
