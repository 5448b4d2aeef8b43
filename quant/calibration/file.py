"""The calibration file: a safetensors file with two tensors for each sample and a description in its header.

The tensors are ``<leader>.rows`` and ``<leader>.mean``. The description is JSON: ``inputs`` (leader -> absmax, count),
``shared`` (layer -> leader), ``fingerprints``, and, unless empty, ``sensitivities``, ``unrecorded`` and
``patched_fingerprints``, as `Calibration` has them. A second text field holds the digest of all that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import Checkpoint, CheckpointWriter, open_checkpoint
from ..files.gguf import is_gguf
from ..files.strict_json import parse_object, quoted
from .statistics import LARGEST, InputStatistics

CALIBRATION_KEY = "calibrated_rounding_calibration"
DIGEST_KEY = "calibrated_rounding_calibration_sha256"

MOST_ROWS = 2**63 - 1
ROW_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Fields(TypedDict):
    """The fields of a `Calibration`."""

    samples: dict[str, InputStatistics]
    shared: dict[str, str]
    fingerprints: dict[str, str]
    sensitivities: dict[str, float]
    unrecorded: tuple[str, ...]
    patched_fingerprints: dict[str, str]


def write_calibration(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], description: str, digest: str, *, overwrite: bool
) -> None:
    """Write a calibration file, whole or not at all.

    Raises:
        CheckpointError: if the file cannot be written, or exists and is not to be replaced.
    """
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    metadata = {CALIBRATION_KEY: description, DIGEST_KEY: digest}
    with CheckpointWriter(path, layout, metadata, overwrite=overwrite) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.commit()


def is_calibration(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a calibration, by its header alone.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    if is_gguf(path):
        return False
    with open_checkpoint(path) as checkpoint:
        return CALIBRATION_KEY in checkpoint.metadata


def has_sensitivities(path: str | os.PathLike[str]) -> bool:
    """Whether a calibration file holds sensitivities, by its header alone.

    Raises:
        CheckpointError: if the file cannot be read, or is no calibration.
    """
    with open_checkpoint(path) as checkpoint:
        text = checkpoint.metadata.get(CALIBRATION_KEY, "")
    return bool(parse_object(text.encode(), Path(path), "the calibration's description").get("sensitivities"))


def read_calibration(path: str | os.PathLike[str]) -> tuple[Fields, str | None]:
    """Read a calibration file and check every value of it.

    Returns:
        The calibration's fields, and the digest that they must have; None in a file of the first versions.

    Raises:
        CheckpointError: if the file is not a calibration, or is damaged.
    """
    with open_checkpoint(path) as checkpoint:
        text = checkpoint.metadata.get(CALIBRATION_KEY)
        if text is None:
            raise CheckpointError(f"{path} is not a calibration file of this pack.")
        description = parse_object(text.encode(), Path(path), "the calibration's description")
        try:
            return _read_fields(checkpoint, description), checkpoint.metadata.get(DIGEST_KEY)
        except _Damage as damage:
            raise CheckpointError(f"{path}: the calibration is damaged ({damage}); record it again.") from None


class _Damage(Exception):
    """Describe what is wrong, in words that fit into brackets."""


def _read_fields(checkpoint: Checkpoint, description: Mapping[str, Any]) -> Fields:
    samples = {layer: _read_sample(checkpoint, layer, entry) for layer, entry in _table(description, "inputs").items()}
    shared = _table(description, "shared", str)
    if not shared:
        raise _Damage("it has no layer")
    for layer, leader in shared.items():
        if leader not in samples:
            raise _Damage(f"layer {quoted(layer)} shares the sample of {quoted(leader)}, which is missing")
    sensitivities = _table(description, "sensitivities", object) if "sensitivities" in description else {}
    unrecorded = description.get("unrecorded", [])
    if not isinstance(unrecorded, list) or not all(map(_is_name, unrecorded)):
        raise _Damage("'unrecorded' is not a list of layers")
    return Fields(
        samples=samples,
        shared=shared,
        fingerprints=_table(description, "fingerprints", str),
        sensitivities={k: _number(value, f"the sensitivity of {quoted(k)}") for k, value in sensitivities.items()},
        unrecorded=tuple(unrecorded),
        patched_fingerprints=_table({"patched_fingerprints": {}} | dict(description), "patched_fingerprints", str),
    )


def _read_sample(checkpoint: Checkpoint, layer: str, entry: Mapping[str, Any]) -> InputStatistics:
    rows, mean = (_read_finite(checkpoint, f"{layer}.{name}", dim) for name, dim in (("rows", 2), ("mean", 1)))
    if rows.numel() == 0 or rows.shape[1] != len(mean) or mean.dtype != torch.float32:
        raise _Damage(f"rows {list(rows.shape)} and mean {list(mean.shape)} of {quoted(layer)} do not fit each other")
    count = entry.get("count")
    if type(count) is not int or not len(rows) <= count <= MOST_ROWS:
        raise _Damage(f"{quoted(layer)} has {len(rows)} rows, drawn from {quoted(count)}")
    absmax = _number(entry.get("absmax"), f"the largest input of {quoted(layer)}")
    return InputStatistics(mean=mean, absmax=absmax, rows=rows, count=count)


def _read_finite(checkpoint: Checkpoint, name: str, dim: int) -> Tensor:
    info = checkpoint.tensors.get(name)
    if info is None or len(info.shape) != dim or info.dtype not in ROW_DTYPES:
        raise _Damage(f"tensor {quoted(name)} is missing, or has another shape or dtype")
    tensor = checkpoint.read(name)
    if not bool(torch.isfinite(tensor).all()):
        raise _Damage(f"tensor {quoted(name)} has values that are not finite")
    return tensor


def _table(description: Mapping[str, Any], name: str, kind: type = dict) -> dict[str, Any]:
    """A part of the description: layer -> a value of ``kind``."""
    table = description.get(name)
    if not isinstance(table, dict) or not all(_is_name(k) and isinstance(v, kind) for k, v in table.items()):
        raise _Damage(f"'{name}' is not a table of layers")
    return table


def _is_name(value: object) -> bool:
    """Whether a value can be a layer's name, fit to be shown in a line of text."""
    return isinstance(value, str) and value.isprintable()


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= LARGEST:
        raise _Damage(f"{what} is {quoted(value)}")
    return float(value)
