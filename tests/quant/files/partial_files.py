"""The page's half of an inspection of a dropped file: it sends the ranges that it is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from calibrated_rounding.quant.files.partial import PartialFile, Range, find_needed

FIRST = 65_536
"""Bytes that are sent first."""
ROUNDS = 8
"""Messages, at most, as in web/dropped.mjs."""


def message(path: Path, ranges: Sequence[Range], name: str | None = None) -> bytes:
    """What the page sends of these ranges of a file."""
    data = path.read_bytes()
    fields = {"name": name or path.name, "size": len(data), "ranges": ranges}
    text = json.dumps(fields).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *(data[start:end] for start, end in ranges)])


def send(path: Path, name: str | None = None) -> tuple[PartialFile, list[Range]]:
    """The file and its ranges after the last message, when all that is needed is at hand."""
    ranges: list[Range] = [(0, min(path.stat().st_size, FIRST))]
    for _ in range(ROUNDS):
        file = PartialFile.from_message(message(path, ranges, name))
        needed = find_needed(file)
        if not needed:
            return file, ranges
        ranges = needed
    raise AssertionError(f"{path.name} takes more than {ROUNDS} messages")
