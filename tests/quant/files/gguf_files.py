"""GGUF files as tests need them, written from the format's description."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from calibrated_rounding.quant.files.gguf import TYPES

NUMBERS = {title: (number, block, nbytes) for number, (title, block, nbytes) in TYPES.items()}
ALIGNMENT = 32


def text(words: str) -> bytes:
    data = words.encode()
    return struct.pack("<Q", len(data)) + data


def header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], fields: Sequence[bytes] = (), *, version: int = 3
) -> tuple[bytes, int]:
    """The header of a file, and the bytes of its tensors: name -> (type, shape as PyTorch has it)."""
    parts, offset = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(fields)), *fields], 0
    for name, (title, shape) in tensors.items():
        number, block, nbytes = NUMBERS[title]
        sizes = list(reversed(shape))
        parts += [text(name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes), struct.pack("<IQ", number, offset)]
        count = 1
        for size in sizes:
            count *= size
        offset += -(-(count // block * nbytes) // ALIGNMENT) * ALIGNMENT
    return b"".join(parts), offset


def text_field(name: str, value: str) -> bytes:
    return text(name) + struct.pack("<I", 8) + text(value)


def number_field(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", 4, value)


def list_field(name: str, values: Sequence[str]) -> bytes:
    return text(name) + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))


def numbers_field(name: str, values: Sequence[int]) -> bytes:
    return text(name) + struct.pack(f"<IIQ{len(values)}I", 9, 4, len(values), *values)


def write_gguf(path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]], fields: Sequence[bytes] = ()) -> None:
    head, nbytes = header(tensors, fields)
    start = -(-len(head) // ALIGNMENT) * ALIGNMENT
    path.write_bytes(head + bytes(start - len(head) + nbytes))
