"""The header of a GGUF file: names, shapes, types and sizes of its tensors. Nothing else of a GGUF file is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .header import MAX_HEADER_BYTES, refuse_too_many
from .source_file import ByteSource, SourceFile
from .strict_json import quoted

MAGIC = b"GGUF"
HEAD = 9
"""Bytes that tell a GGUF file from others."""
VERSIONS = (2, 3)
MAX_RANK = 8
MAX_FIELDS = 65_536
WINDOW = 1 << 20
"""Bytes that are read at a time."""

TYPES: Mapping[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 28: ("F64", 1, 8), 30: ("BF16", 1, 2)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34)},
    **{10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176)},
    **{14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292)},
    **{16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50)},
    **{20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136)},
    **{29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17)},
}
"""Number of a type -> its name, weights of a block, bytes of a block (gguf-py's constants)."""

PLAIN = frozenset({"F32", "F16", "F64", "BF16", "I8", "I16", "I32", "I64"})
"""Types that are not quantized."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Number of a field's type -> its code for `struct`."""
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor in a GGUF file."""

    name: str
    shape: tuple[int, ...]
    """In the order of PyTorch; GGUF has the reverse."""
    type: str
    nbytes: int

    @property
    def is_quantized(self) -> bool:
        return self.type not in PLAIN


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """The header of a GGUF file."""

    tensors: tuple[GgufTensor, ...]
    fields: Mapping[str, str]
    """The single values of the header, as text; lists, such as a vocabulary, are left out."""


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a GGUF file does. A safetensors file may begin with the same four bytes."""
    try:
        with open(path, "rb") as file:
            return is_gguf_head(file.read(HEAD))
    except OSError:
        return False


def is_gguf_head(head: bytes) -> bool:
    """As `is_gguf`, by the first `HEAD` bytes of a file."""
    return head.startswith(MAGIC) and head[8:9] != b"{"


def read_gguf(path: str | os.PathLike[str]) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        CheckpointError: it is damaged, cut off, or of a version that is not known.
    """
    with SourceFile(path) as source:
        return parse_gguf(source)


def parse_gguf(source: ByteSource) -> GgufHeader:
    """As `read_gguf`, from a file that is open already."""
    cursor = _Cursor(source)
    cursor.take(len(MAGIC))
    version = cursor.number("I")
    if version not in VERSIONS:
        raise cursor.fail(f"its version is {version}, and {' and '.join(map(str, VERSIONS))} are known")
    count, field_count = cursor.number("Q"), cursor.number("Q")
    refuse_too_many(count, source.path)
    if field_count > MAX_FIELDS:
        raise cursor.fail(f"it announces {field_count} fields")
    fields = dict(_read_field(cursor) for _ in range(field_count))
    tensors = tuple(_read_tensor(cursor) for _ in range(count))
    if len({tensor.name for tensor in tensors}) < count:
        raise cursor.fail("it holds a tensor twice")
    if sum(tensor.nbytes for tensor in tensors) > source.size:
        raise cursor.fail("its tensors take more bytes than it has; fetch it again")
    return GgufHeader(tensors=tensors, fields={name: text for name, text in fields.items() if text is not None})


def _read_field(cursor: _Cursor) -> tuple[str, str | None]:
    """A field's name and its value as text; None for a list."""
    name, kind = cursor.text(), cursor.number("I")
    if kind != _ARRAY:
        return name, str(_reader(cursor, kind)())
    inner, length = cursor.number("I"), cursor.number("Q")
    if inner in _SCALARS:
        cursor.skip(length * struct.calcsize(_SCALARS[inner]))
    else:
        read = _reader(cursor, inner)
        for _ in range(length):  # bounded by the header's bytes: a text takes at least eight
            read()
    return name, None


def _reader(cursor: _Cursor, kind: int) -> Callable[[], Any]:
    """Reads one value of a type; lists of lists are not known."""
    if kind == _TEXT:
        return cursor.text
    if kind not in _SCALARS:
        raise cursor.fail(f"a field has the unknown type {kind}")
    return lambda: cursor.number(_SCALARS[kind])


def _read_tensor(cursor: _Cursor) -> GgufTensor:
    name, rank = cursor.text(), cursor.number("I")
    if rank > MAX_RANK:
        raise cursor.fail(f"tensor {quoted(name)} has {rank} dimensions")
    sizes = [cursor.number("Q") for _ in range(rank)]
    kind, _ = cursor.number("I"), cursor.number("Q")
    if kind not in TYPES:
        raise cursor.fail(f"tensor {quoted(name)} has the unknown type {kind}")
    title, block, nbytes = TYPES[kind]
    if sizes and sizes[0] % block:
        raise cursor.fail(f"tensor {quoted(name)} has rows of {sizes[0]} weights, which are no blocks of {title}")
    return GgufTensor(name=name, shape=tuple(reversed(sizes)), type=title, nbytes=math.prod(sizes) // block * nbytes)


class _Cursor:
    """Reads a header from its start; every length in it is checked against the file before it is used."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self._end = source, min(source.size, MAX_HEADER_BYTES)
        self._window, self._start, self._position = bytearray(), 0, 0

    @property
    def path(self) -> Path:
        return self._source.path

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is a GGUF file that cannot be read: {what}.")

    def take(self, count: int) -> bytes:
        if count > self._end - self._position:
            raise self.fail("it ends inside its header; fetch it again")
        place = self._position - self._start
        if place + count > len(self._window):
            self._start, place = self._position, 0
            length = max(count, min(WINDOW, self._end - self._position))
            self._window = self._source.read(self._position, length)
        self._position += count
        return bytes(self._window[place : place + count])

    def skip(self, count: int) -> None:
        if count > self._end - self._position:
            raise self.fail("it ends inside its header; fetch it again")
        self._position += count
        self._start, self._window = self._position, bytearray()

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("a name in it is no UTF-8") from None
