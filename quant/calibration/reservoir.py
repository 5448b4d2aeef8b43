"""A bounded uniform sample of one layer's input rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .statistics import InputStatistics

Integers = NDArray[np.integer]

PLACE_BITS = 33
"""Bits of a rank that count the rows before; a key between 0 and 1 takes the other 30 bits of a positive int64."""
FIRST_SLOTS = 64
"""Slots for rows at first; they double when they are full."""
SPARE = 16
"""A slot more for so many rows of a full sample, so that the rows that leave are chosen for many at once."""
EMPTY = np.iinfo(np.int64).min
"""Rank of a slot without a row."""


@dataclass(kw_only=True)
class Reservoir:
    """A uniform sample of at most ``capacity`` of all rows seen: the rows with the largest of random keys.

    Any prefix by key of the sample is a uniform sample too, so the capacity may shrink at any time. Rows lie in slots
    in any order; when no slot is free, the rows with the smallest keys leave theirs. NumPy writes whole rows, which
    torch's ``index_copy_`` does value by value.
    """

    width: int
    """K, the values of a row."""
    capacity: int
    """Most rows that are kept."""
    generator: torch.Generator
    """Draws the keys."""
    sums: NDArray[np.float64]
    """``[K]``: the sum of all rows seen."""
    absmax: float = 0.0
    """The largest magnitude seen."""
    count: int = 0
    """Number of rows seen."""
    _ranks: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 ``[S]``: the rank of the row in each slot, see `_rank`; S <= `_room`."""
    _free: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    """Slots without a row."""
    _words: Integers
    """int16 ``[S, K]``: the bits of the row in each slot."""
    _dtype: torch.dtype = torch.bfloat16
    """The dtype of the rows: a `storage_dtype`."""
    _floor: int = -1
    """Bits of the smallest key that stayed when rows last left; a row enters if its key is larger."""

    @classmethod
    def empty(cls, width: int, capacity: int, seed: int) -> Reservoir:
        """A reservoir for rows of ``width`` values whose sample depends on ``seed`` alone."""
        return cls(
            width=width,
            capacity=capacity,
            generator=torch.Generator().manual_seed(seed),
            sums=np.zeros(width),
            _words=np.empty((0, width), np.int16),
        )

    @property
    def rows(self) -> Tensor:
        """``[R, K]`` in `storage_dtype`: a copy of the sample, largest key first."""
        return torch.from_numpy(self._words[self._largest()]).view(self._dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the sample."""
        return min(self._size, self.capacity) * self.width * self._words.itemsize

    def add(self, rows: Tensor, sums: NDArray[np.float32], absmax: float) -> None:
        """Offer rows to the sample; only those that enter it are copied to the CPU.

        An error, such as too little memory, leaves the reservoir as it was.

        Args:
            rows: ``[R, K]``, finite, on any device; R >= 1.
            sums: their sum, ``[K]``.
            absmax: their largest magnitude.
        """
        keys = torch.rand(rows.shape[0], generator=self.generator).numpy().view(np.int32)
        offered = np.flatnonzero(keys > self._floor)
        if offered.size:
            self._take(rows, self._rank(keys[offered], offered), offered)
        self.count += rows.shape[0]
        self.sums += sums
        self.absmax = max(self.absmax, absmax)

    def _rank(self, keys: Integers, places: Integers) -> Integers:
        """One number to order rows by, int64 ``[n]``: by key, and of equal keys the row that came first is larger.

        Args:
            keys: Float32 keys as int32, which orders numbers from 0 to 1 as they are.
            places: Of the rows in their call.
        """
        return (keys.astype(np.int64) << PLACE_BITS) - places - self.count

    @staticmethod
    def _key(rank: int) -> int:
        return -(-rank >> PLACE_BITS)

    @property
    def _room(self) -> int:
        """Most slots."""
        return self.capacity + self.capacity // SPARE

    @property
    def _size(self) -> int:
        """Number of rows in slots."""
        return len(self._ranks) - len(self._free)

    def _largest(self) -> Integers:
        """Slots of the sample, largest rank first."""
        return np.argsort(self._ranks)[::-1][: min(self._size, self.capacity)]

    def _take(self, rows: Tensor, ranks: Integers, offered: Integers) -> None:
        """Take offered rows in, and let rows of small ranks go if there are no slots for all."""
        self._make_room(self._size + len(ranks))
        free, floor = self._free, self._floor
        if len(ranks) > len(free):
            stays, floor = self._choose(ranks)
            free, new = np.flatnonzero(~stays[: len(self._ranks)]), stays[len(self._ranks) :]
            offered, ranks = offered[new], ranks[new]
        kept = _gather(rows, offered)
        self._convert(kept.dtype)
        slots, self._free = free[: len(kept)], free[len(kept) :]
        self._words[slots] = kept.view(torch.int16).numpy()
        self._ranks[self._free], self._ranks[slots] = EMPTY, ranks
        self._floor = floor

    def _choose(self, ranks: Integers) -> tuple[NDArray[np.bool_], int]:
        """Say which rows of the slots and of those offered stay, as many as the capacity, and the floor then."""
        joined = np.concatenate([self._ranks, ranks])
        excess = len(joined) - self.capacity
        order = np.argpartition(joined, excess)
        stays = np.ones(len(joined), dtype=bool)
        stays[order[:excess]] = False
        return stays, self._key(int(joined[order[excess]]))

    def _make_room(self, count: int) -> None:
        """Have slots for ``count`` rows, or as many as there may be."""
        slots = len(self._ranks)
        more = min(self._room, max(count, 2 * slots, FIRST_SLOTS)) - slots
        if count > slots and more > 0:
            words = np.empty((slots + more, self.width), np.int16)  # its pages take no memory before they are written
            words[:slots] = self._words
            self._ranks = np.concatenate([self._ranks, np.full(more, EMPTY)])
            self._free = np.concatenate([self._free, np.arange(slots, slots + more)])
            self._words = words

    def _convert(self, dtype: torch.dtype) -> None:
        """Hold the rows in a `storage_dtype`."""
        if self._dtype != dtype:
            self._words = torch.from_numpy(self._words).view(self._dtype).to(dtype).view(torch.int16).numpy()
            self._dtype = dtype

    def shrink(self, capacity: int) -> None:
        """Keep at most ``capacity`` rows, now and later."""
        self.capacity = capacity
        if self._size >= capacity:
            largest = self._largest()
            self._ranks, self._words, self._free = self._ranks[largest], self._words[largest], self._free[:0]
            self._floor = self._key(int(self._ranks[-1]))

    def summarize(self) -> InputStatistics:
        """The statistics of all rows seen, with the sample."""
        mean = torch.from_numpy((self.sums / max(self.count, 1)).astype(np.float32))
        return InputStatistics(mean=mean, absmax=self.absmax, rows=self.rows, count=self.count)


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit dtype that rows of ``dtype`` are kept in: their own, or bfloat16."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16


def _gather(rows: Tensor, places: Integers) -> Tensor:
    """Rows on the CPU in `storage_dtype`; a copy unless it is all of them."""
    if len(places) < len(rows):
        rows = rows.index_select(0, torch.from_numpy(places).to(rows.device))
    return rows.to("cpu", storage_dtype(rows.dtype))
