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
"""Rows that a buffer has room for at first; it doubles when it is full."""


@dataclass(kw_only=True)
class Reservoir:
    """A uniform sample of at most ``capacity`` of all rows seen: the rows with the largest of random keys.

    Any prefix by key of the sample is a uniform sample too, so the capacity may shrink at any time. Rows lie in a
    buffer in any order, and a row that enters takes the place of one that leaves.
    """

    width: int
    """K, the values of a row."""
    capacity: int
    """Most rows that are kept."""
    generator: torch.Generator
    """Draws the keys."""
    sums: Tensor
    """float64 ``[K]``: the sum of all rows seen."""
    absmax: float = 0.0
    """The largest magnitude seen."""
    count: int = 0
    """Number of rows seen."""
    _ranks: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 ``[R]``: the rank of the row in each slot of the buffer, see `_rank`."""
    _floor: int = -1
    """Bits of the smallest key in a full sample; a row enters if its key is larger."""
    _buffer: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    """``[S, K]`` in `storage_dtype`, S >= R."""

    @classmethod
    def empty(cls, width: int, capacity: int, seed: int) -> Reservoir:
        """A reservoir for rows of ``width`` values whose sample depends on ``seed`` alone."""
        sums = torch.zeros(width, dtype=torch.float64)
        return cls(width=width, capacity=capacity, generator=torch.Generator().manual_seed(seed), sums=sums)

    @property
    def rows(self) -> Tensor:
        """``[R, K]`` in `storage_dtype`: a copy of the sample, largest key first."""
        return self._buffer[torch.from_numpy(np.argsort(-self._ranks))]

    @property
    def nbytes(self) -> int:
        """Bytes of the sample."""
        return len(self._ranks) * self.width * self._buffer.element_size()

    def add(self, rows: Tensor, sums: Tensor, absmax: float) -> None:
        """Offer rows to the sample; only those that enter it are copied to the CPU.

        An error, such as too little memory, leaves the reservoir as it was.

        Args:
            rows: ``[R, K]``, finite, on any device; R >= 1.
            sums: their sum, float32 ``[K]`` on the CPU.
            absmax: their largest magnitude.
        """
        keys = torch.rand(rows.shape[0], generator=self.generator).numpy().view(np.int32)
        offered = np.flatnonzero(keys > self._floor)
        if offered.size:
            self._replace(rows, self._rank(keys[offered], offered), offered)
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

    def _replace(self, rows: Tensor, ranks: Integers, offered: Integers) -> None:
        """Take offered rows in and let as many rows of smaller ranks go as the capacity asks."""
        size, joined = len(self._ranks), np.concatenate([self._ranks, ranks])
        excess, floor = len(joined) - self.capacity, self._floor
        slots = np.arange(size, min(len(joined), self.capacity))
        if excess >= 0:
            smallest = np.argpartition(joined, excess)
            leaving, floor = smallest[:excess], self._key(int(joined[smallest[excess]]))
            stays = np.ones(len(ranks), dtype=bool)
            stays[leaving[leaving >= size] - size] = False
            offered, ranks = offered[stays], ranks[stays]
            slots = np.concatenate([leaving[leaving < size], slots])
        kept = rows if len(offered) == len(rows) else rows.index_select(0, torch.from_numpy(offered).to(rows.device))
        kept = kept.to("cpu", storage_dtype(rows.dtype))
        self._make_room(min(len(joined), self.capacity), kept.dtype)
        _words(self._buffer)[slots] = _words(kept)
        self._ranks = joined[: self.capacity]
        self._ranks[slots] = ranks
        self._floor = floor

    def _make_room(self, count: int, dtype: torch.dtype) -> None:
        """Let the buffer hold ``count`` rows in ``dtype``."""
        size = len(self._buffer)
        if count > size:
            buffer = torch.empty(min(self.capacity, max(count, 2 * size, FIRST_SLOTS)), self.width, dtype=dtype)
            if size:
                buffer[:size] = self._buffer
            self._buffer = buffer
        elif self._buffer.dtype != dtype:
            self._buffer = self._buffer.to(dtype)

    def shrink(self, capacity: int) -> None:
        """Keep at most ``capacity`` rows, now and later."""
        self.capacity = capacity
        if len(self._ranks) >= capacity:
            largest = np.argsort(-self._ranks)[:capacity]
            self._buffer, self._ranks = self._buffer[torch.from_numpy(largest)], self._ranks[largest]
            self._floor = self._key(int(self._ranks[-1]))

    def summarize(self) -> InputStatistics:
        """The statistics of all rows seen, with the sample."""
        mean = (self.sums / max(self.count, 1)).to(torch.float32)
        return InputStatistics(mean=mean, absmax=self.absmax, rows=self.rows, count=self.count)


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit dtype that rows of ``dtype`` are kept in: their own, or bfloat16."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16


def _words(rows: Tensor) -> NDArray[np.int16]:
    """The same memory for NumPy, which moves whole rows at a time; torch's ``index_copy_`` moves single values."""
    words: NDArray[np.int16] = rows.view(torch.int16).numpy()
    return words
