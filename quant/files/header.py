"""The head of a safetensors file: what tensors there are and where they lie.

The format: 8 bytes with the header's length (little-endian), the header (JSON), then the tensors' bytes without holes.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import torch

from ..errors import CheckpointError
from ..text import counted
from .source_file import ByteSource, SourceFile
from .strict_json import is_text, parse_object, quoted

MAX_HEADER_BYTES: Final = 100_000_000  # the format's own cap
MAX_TENSORS: Final = 200_000
"""More than any known model has: language models of 10^12 parameters have 140,000, with a scale for each weight."""
METADATA_FIELD: Final = "__metadata__"
_MAX_BYTES: Final = 2**63 - 1
_MAX_RANK: Final = 64

_TORCH_NAMES: Final = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
DTYPES: Final[dict[str, torch.dtype]] = {
    name: getattr(torch, torch_name) for name, torch_name in _TORCH_NAMES.items() if hasattr(torch, torch_name)
}

_FOREIGN: Final = (
    (b"PK\x03\x04", "a zip archive, as PyTorch's pickled checkpoints (.pt, .ckpt) are; convert it to safetensors"),
    (b"\x80", "a Python pickle (.pt, .ckpt), which could run any code and is never opened here"),
    (b"GGUF", "a GGUF file, quantized already; quantize the safetensors file in 16 bits that it was made from"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the real file with `git lfs pull`"),
    (b"<", "a web page or XML; the download failed"),
    (b"{", "a JSON text"),
)


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor's entry; `start` and `end` are bytes relative to the data section."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """`tensors` in file order; `data_start` is the data section's first byte in the file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of one safetensors file.

    Raises CheckpointError, naming the file and the tensor, for everything that is not a whole and valid file.
    """
    with SourceFile(path) as source:
        return parse_header(source)


def parse_header(source: ByteSource) -> Header:
    """As `read_header`, from a file that is open already."""
    path = source.path
    data_start = _find_data(source)
    entries = parse_object(bytes(source.read(8, data_start - 8)), path, "the header")
    metadata = _checked_metadata(entries.pop(METADATA_FIELD, {}), path)
    refuse_too_many(len(entries), path)
    infos = [_parse_entry(name, entry, path) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.start, info.end))
    _check_extents(infos, source.size - data_start, path)
    return Header({info.name: info for info in infos}, metadata, data_start)


def refuse_too_many(count: int, path: Path) -> None:
    """Raise CheckpointError for more tensors than a model has, as each costs time and memory in all that follows."""
    if count > MAX_TENSORS:
        raise CheckpointError(f"{path} lists {count} tensors; files of more than {MAX_TENSORS} are not read here.")


def byte_count(dtype: torch.dtype, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor, or None when no machine can address it or its strides."""
    if len(shape) > _MAX_RANK or any(size < 0 or size > _MAX_BYTES for size in shape):
        return None
    # A zero does not excuse the other sizes: torch multiplies them for the strides.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > _MAX_BYTES:
        return None
    return math.prod(shape) * dtype.itemsize


def _find_data(source: ByteSource) -> int:
    """First byte of the data section, when the file begins as a safetensors file does."""
    path, size = source.path, source.size
    if not size:
        raise CheckpointError(f"{path} is empty; fetch it again.")
    head = bytes(source.read(0, min(size, 32)))
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= MAX_HEADER_BYTES and length + 8 <= size:
        return length + 8
    foreign = next((what for magic, what in _FOREIGN if head.startswith(magic)), None)
    if foreign and head[8:9] not in (b"{", b""):  # these first bytes may also be a header's length
        raise CheckpointError(f"{path} is not a safetensors file but {foreign}.")
    if size < 8 or (length <= MAX_HEADER_BYTES and length + 8 > size):
        raise CheckpointError(f"{path} is truncated: it ends after {size} bytes, inside its header; fetch it again.")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} is not a safetensors file: it announces a header of {length} bytes.")
    raise CheckpointError(f"{path} is not a safetensors file: its header does not begin with an opening brace.")


def _checked_metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the header's {METADATA_FIELD} is not a JSON object.")
    for key, text in value.items():
        if not is_text(text):
            raise CheckpointError(f"{path}: the metadata field {quoted(key)} is not text.")
    return value


def _parse_entry(name: str, entry: Any, path: Path) -> TensorInfo:
    def fail(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {quoted(name)} {what}.")

    if not isinstance(entry, dict):
        raise fail("is not described by a JSON object")
    dtype_name, shape, offsets = (entry.get(field) for field in ("dtype", "shape", "data_offsets"))
    dtype = DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise fail(f"has the data type {quoted(dtype_name)}, which cannot be read here")
    if not _are_integers(shape):
        raise fail("has a shape that is not a list of whole numbers")
    if not _are_integers(offsets) or len(offsets) != 2:
        raise fail("has data_offsets that are not two whole numbers")
    expected = byte_count(dtype, tuple(shape))
    if expected is None:
        raise fail(f"has the impossible shape {quoted(shape)}")
    start, end = offsets
    if not 0 <= start <= end <= _MAX_BYTES:
        raise fail(f"has the impossible data_offsets {quoted(offsets)}")
    if end - start != expected:
        raise fail(f"takes {end - start} bytes where {dtype_name} {quoted(shape)} needs {expected}")
    return TensorInfo(name=name, dtype=dtype, shape=tuple(shape), start=start, end=end)


def _are_integers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_extents(infos: list[TensorInfo], available: int, path: Path) -> None:
    """Refuse overlaps, holes, and a data section longer or shorter than the tensors."""
    position = 0
    for info in infos:
        if info.start < position:
            raise CheckpointError(f"{path}: tensor {quoted(info.name)} overlaps the one before it.")
        if info.start > position:
            raise CheckpointError(f"{path}: {info.start - position} unused bytes lie before {quoted(info.name)}.")
        position = info.end
    if position > available:
        missing = counted(position - available, "byte")
        raise CheckpointError(f"{path} is truncated: it lacks {missing}; fetch it again.")
    if position < available:
        raise CheckpointError(f"{path} has {available - position} bytes after its last tensor; it is damaged.")
