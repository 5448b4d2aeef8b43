"""A file of which only some bytes are at hand, in memory: one that a browser reads, in no folder of this machine.

An inspection reads little of a file. `find_needed` says which bytes, so that only these are sent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path, PureWindowsPath
from typing import Any, Final, TypeGuard

from ..bounded_json import parse_json
from ..errors import CheckpointError
from ..formats.marker import LARGEST as LARGEST_MARKER
from ..formats.marker import NAME as MARKER
from ..formats.stored import LEGACY_NAMES, STORED_FORMATS, UNMARKED_BLOCK_FP8
from .gguf import HEAD, is_gguf_head, parse_gguf
from .header import Header, TensorInfo, parse_header
from .reader import Checkpoint
from .shards import INDEX_SUFFIX
from .strict_json import is_text

MOST_BYTES: Final = 56_000_000
"""Of one file, at hand at a time."""
MOST_MESSAGE: Final = 64_000_000
"""Bytes of a message that `PartialFile.from_message` takes: the same with a list of their ranges."""
LARGEST_SCALES: Final = 128 * 1024
"""Bytes of a tensor of scales that is read, at most."""
MOST_SCALES: Final = 16_000_000
"""Bytes of all tensors of scales that are read, at most; the smallest first."""
WIDEST_GAP: Final = 512
"""Bytes between two ranges that become one, at most."""
GROWTH: Final = 4
"""Factor by which the beginning grows if a header goes on behind it."""

SCALES: Final = frozenset(
    {name for stored in (*STORED_FORMATS.values(), UNMARKED_BLOCK_FP8) for name in stored.companions} | {*LEGACY_NAMES}
)
"""Names within a layer of the tensors whose values an inspection checks."""

TOO_LARGE: Final = (
    "{path} has a header of more than {limit} MB, which is only read in a model folder: copy it into one."
)

Range = tuple[int, int]
"""First byte, and the byte after the last one."""


class MissingBytes(CheckpointError):
    """Bytes are read that are not at hand."""

    def __init__(self, path: Path, start: int, end: int) -> None:
        super().__init__(f"{path} is read from byte {start} to {end}, which are not at hand.")
        self.end = end


class PartialFile:
    """A `ByteSource` of the bytes that are at hand.

    Args:
        name: of the file. A folder before it is dropped; nothing is ever opened under this name.
        size: of the whole file in bytes.
        ranges: what is at hand, in order and without overlap.
        data: the bytes of all ranges.

    Raises:
        ValueError: the ranges fit neither the file nor the data.
    """

    def __init__(self, name: str, size: int, ranges: Sequence[Range], data: bytes | memoryview) -> None:
        self.path = Path(_bare(name))
        self.size = size
        self._starts = [start for start, _ in ranges]
        self._pieces = list(_cut(size, ranges, memoryview(data)))

    @classmethod
    def from_message(cls, message: bytes) -> PartialFile:
        """Read a message: the length of a JSON text (8 bytes, little-endian), the text, and the bytes of its ranges.

        The text is an object with ``name``, ``size`` and ``ranges``, a list of ``[start, end]``.

        Raises:
            ValueError: it is none.
        """
        end = 8 + int.from_bytes(message[:8], "little")
        if end > len(message):
            raise ValueError("The message is cut off.")
        stated = parse_json(message[8:end])
        if not isinstance(stated, dict):
            raise ValueError("The message's text is not a JSON object.")
        name, size, ranges = (stated.get(field) for field in ("name", "size", "ranges"))
        if not is_text(name) or type(size) is not int or not _are_ranges(ranges):
            raise ValueError("The message does not state name, size and ranges.")
        return cls(name, size, ranges, memoryview(message)[end:])

    @property
    def beginning(self) -> int:
        """Number of bytes at hand from the first one."""
        return len(self._pieces[0]) if self._starts[:1] == [0] else 0

    def close(self) -> None:
        """Nothing is open."""

    def holds(self, start: int, end: int) -> bool:
        """Whether these bytes are at hand, in one piece."""
        return start == end or self._find(start, end) is not None

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes from byte `offset`; errors as `read_into`."""
        return bytearray(self._view(offset, offset + count))

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (of bytes) from byte `offset`; raises `MissingBytes`."""
        view[:] = self._view(offset, offset + len(view))

    def sha256(self) -> str:
        """Raises `MissingBytes`: a digest needs every byte."""
        raise MissingBytes(self.path, 0, self.size)

    def _view(self, start: int, end: int) -> memoryview:
        view = memoryview(b"") if start == end else self._find(start, end)
        if view is None:
            raise MissingBytes(self.path, start, end)
        return view

    def _find(self, start: int, end: int) -> memoryview | None:
        """Bytes that are at hand; None if some are not."""
        place = bisect_right(self._starts, start) - 1
        if place < 0:
            return None
        view = self._pieces[place][start - self._starts[place] : end - self._starts[place]]
        return view if len(view) == end - start else None


def begins_as_gguf(file: PartialFile) -> bool:
    """Whether a file begins as a GGUF file does; raises `MissingBytes`."""
    return is_gguf_head(bytes(file.read(0, min(file.size, HEAD))))


def open_partial(file: PartialFile) -> tuple[Checkpoint, frozenset[str]]:
    """Open a safetensors file.

    Returns:
        The checkpoint, and the names of the tensors that cannot be read from it.

    Raises:
        CheckpointError: it is not a whole and valid file, or `MissingBytes` of its header.
    """
    header = parse_header(file)
    missing = {info.name for info in header.tensors.values() if not file.holds(*_place(header, info))}
    return Checkpoint(file.path, [file.path], [(file, header)]), frozenset(missing)


def find_needed(file: PartialFile) -> list[Range]:
    """Find the bytes that an inspection of a file reads: its header, the markers, and small tensors of scales.

    Returns:
        All ranges to have at hand next, in order; empty if nothing is missing.

    Raises:
        CheckpointError: it is not a whole and valid file, or of a kind that is only read in a folder.
    """
    if file.path.name.lower().endswith(INDEX_SUFFIX):
        raise CheckpointError(
            f"{file.path} is the index of a model in several files, which are only read together: copy all of them "
            "into a model folder, or drop one of the shards."
        )
    try:
        if begins_as_gguf(file):
            parse_gguf(file)
            return []
        header = parse_header(file)
    except MissingBytes as missing:
        return [(0, _grow(file, missing.end))]
    places = [_place(header, info) for info in (*_list_markers(header), *_list_scales(header))]
    ranges = _join([(0, header.data_start), *places])
    _refuse_too_large(file, sum(end - start for start, end in ranges))
    return [] if all(file.holds(*piece) for piece in ranges) else ranges


def _grow(file: PartialFile, end: int) -> int:
    """End of a longer beginning, at least ``end``; so that a header in many steps takes few messages."""
    _refuse_too_large(file, end)
    return max(end, min(GROWTH * file.beginning, file.size, MOST_BYTES))


def _refuse_too_large(file: PartialFile, nbytes: int) -> None:
    if nbytes > MOST_BYTES:
        raise CheckpointError(TOO_LARGE.format(path=file.path, limit=MOST_BYTES // 10**6))


def _list_markers(header: Header) -> Iterator[TensorInfo]:
    return (info for info in header.tensors.values() if _part(info) == MARKER and info.nbytes <= LARGEST_MARKER)


def _list_scales(header: Header) -> Iterator[TensorInfo]:
    small = [info for info in header.tensors.values() if _part(info) in SCALES and info.nbytes <= LARGEST_SCALES]
    small.sort(key=lambda info: info.nbytes)
    totals = accumulate(info.nbytes for info in small)
    return (info for info, total in zip(small, totals, strict=True) if total <= MOST_SCALES)


def _part(info: TensorInfo) -> str:
    """Name of a tensor within its layer."""
    return info.name.rpartition(".")[2]


def _place(header: Header, info: TensorInfo) -> Range:
    return header.data_start + info.start, header.data_start + info.end


def _join(ranges: Iterable[Range]) -> list[Range]:
    """The ranges in order, neighbours as one."""
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1] + WIDEST_GAP:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _bare(name: str) -> str:
    """A name for messages, without folders; what cannot be one becomes "file"."""
    bare = PureWindowsPath(name).name
    return bare if bare.isprintable() and bare != ".." and 0 < len(bare) <= 255 else "file"


def _are_ranges(value: Any) -> TypeGuard[list[Range]]:
    return isinstance(value, list) and all(
        isinstance(piece, list) and len(piece) == 2 and all(type(place) is int for place in piece) for piece in value
    )


def _cut(size: int, ranges: Iterable[Range], data: memoryview) -> Iterator[memoryview]:
    position = taken = 0
    for start, end in ranges:
        if not position <= start <= end <= size:
            raise ValueError(f"The range {start} to {end} does not fit a file of {size} bytes, or those before it.")
        yield data[taken : taken + end - start]
        taken, position = taken + end - start, end
    if taken != len(data):
        raise ValueError(f"The ranges take {taken} bytes, and {len(data)} were sent.")
