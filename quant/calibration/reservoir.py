"""A bounded uniform sample of one layer's input rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .statistics import InputStatistics

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
    _keys: Tensor = field(default_factory=lambda: torch.empty(0))
    """float32 ``[R]``: the keys of the sample, falling."""
    _slots: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """``[R]``: where in the buffer the row of each key is."""
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
        return self._buffer.index_select(0, self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes of the sample."""
        return len(self._slots) * self.width * self._buffer.element_size()

    def add(self, rows: Tensor, sums: Tensor, absmax: float) -> None:
        """Offer rows to the sample; only those that enter it are copied to the CPU.

        An error, such as too little memory, leaves the reservoir as it was.

        Args:
            rows: ``[R, K]``, finite, on any device; R >= 1.
            sums: their sum, float32 ``[K]`` on the CPU.
            absmax: their largest magnitude.
        """
        drawn = torch.rand(rows.shape[0], generator=self.generator)
        floor = float(self._keys[-1]) if len(self._keys) >= self.capacity else -1.0
        offered = torch.nonzero(drawn > floor).flatten()
        if len(offered):
            self._replace(rows, drawn, offered)
        self.count += rows.shape[0]
        self.sums += sums
        self.absmax = max(self.absmax, absmax)

    def _replace(self, rows: Tensor, drawn: Tensor, offered: Tensor) -> None:
        """Take offered rows in and let as many rows of smaller keys go as the capacity asks."""
        keys, order = torch.cat([self._keys, drawn[offered]]).sort(descending=True, stable=True)
        keys, order = keys[: self.capacity], order[: self.capacity]
        enters = order >= len(self._keys)
        entering = offered[order[enters] - len(self._keys)]
        kept = rows.index_select(0, entering.to(rows.device)).to("cpu", storage_dtype(rows.dtype))
        self._make_room(len(keys), kept.dtype)
        slots = torch.empty_like(order)
        slots[~enters] = self._slots[order[~enters]]
        free = torch.ones(len(self._buffer), dtype=torch.bool)
        free[slots[~enters]] = False
        slots[enters] = torch.nonzero(free).flatten()[: len(kept)]
        self._buffer[slots[enters]] = kept
        self._keys, self._slots = keys, slots

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
        if len(self._keys) > capacity:
            self._keys, self._buffer = self._keys[:capacity].clone(), self._buffer[self._slots[:capacity]]
            self._slots = torch.arange(capacity)

    def summarize(self) -> InputStatistics:
        """The statistics of all rows seen, with the sample."""
        mean = (self.sums / max(self.count, 1)).to(torch.float32)
        return InputStatistics(mean=mean, absmax=self.absmax, rows=self.rows, count=self.count)


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit dtype that rows of ``dtype`` are kept in: their own, or bfloat16."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
