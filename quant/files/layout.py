"""Positions of the tensors in a file to be written, and its header."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..errors import CheckpointError
from .header import DTYPES, MAX_HEADER_BYTES, METADATA_FIELD, TensorInfo, byte_count
from .strict_json import is_text, quoted

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # bytes, of the data section: the largest element


def arrange(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], path: Path) -> dict[str, TensorInfo]:
    """Give every tensor its place: wide elements first, so that each is aligned although there are no holes.

    Within one element size the order of `layout` stays. Raises CheckpointError for a tensor that cannot be stored.
    """
    infos: dict[str, TensorInfo] = {}
    position = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        size = _checked_size(name, dtype, tuple(shape), path)
        infos[name] = TensorInfo(name=name, dtype=dtype, shape=tuple(shape), start=position, end=position + size)
        position += size
    return infos


def encode_header(infos: Iterable[TensorInfo], metadata: Mapping[str, str], path: Path) -> bytes:
    """The file's bytes up to the data section: length and JSON, padded with spaces to whole eights of bytes.

    The same tensors and metadata, in whatever order the metadata comes, give the same bytes. Raises CheckpointError
    when the metadata is not text, or the header is larger than the format allows.
    """
    entries: dict[str, object] = {}
    if metadata:
        _check_metadata(metadata, path)
        entries[METADATA_FIELD] = dict(sorted(metadata.items()))
    for info in infos:
        offsets = [info.start, info.end]
        entries[info.name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return _padded(text, len(text) + -len(text) % _ALIGNMENT, path)


def refit(header: bytes, size: int, path: Path) -> bytes:
    """An encoded header, padded to the `size` bytes that are reserved for it; CheckpointError when it is longer."""
    if len(header) > size:
        raise CheckpointError(f"{path} cannot be written: its metadata outgrew the room reserved for it at the start.")
    return _padded(header[8:], size - 8, path)


def _padded(text: bytes, length: int, path: Path) -> bytes:
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} cannot be written: its header would have {length} bytes, too many to be loaded.")
    return length.to_bytes(8, "little") + text.ljust(length, b" ")


def _checked_size(name: str, dtype: torch.dtype, shape: tuple[int, ...], path: Path) -> int:
    if not is_text(name) or name == METADATA_FIELD:
        raise CheckpointError(f"{path} cannot be written: {quoted(name)} is not a possible tensor name.")
    if dtype not in _NAMES:
        raise CheckpointError(f"{path} cannot be written: tensor {quoted(name)} has {dtype}, which has no name there.")
    size = byte_count(dtype, shape)
    if size is None:
        raise CheckpointError(f"{path} cannot be written: tensor {quoted(name)} has the impossible shape {shape}.")
    return size


def _check_metadata(metadata: Mapping[str, str], path: Path) -> None:
    for key, value in metadata.items():
        if not is_text(key) or not is_text(value):
            raise CheckpointError(f"{path} cannot be written: the metadata field {quoted(key)} is not text.")
