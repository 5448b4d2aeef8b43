"""A bounded uniform sample of one layer's input rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .statistics import InputStatistics


@dataclass(kw_only=True)
class Reservoir:
    """A uniform sample of at most ``capacity`` of all rows seen: the rows with the largest of random keys.

    Any prefix by key of the sample is a uniform sample too, so the capacity may shrink at any time.
    """

    capacity: int
    """Most rows that are kept."""
    generator: torch.Generator
    """Draws the keys."""
    rows: Tensor
    """``[R, K]`` in `storage_dtype`: the sample, largest key first."""
    keys: Tensor
    """float32 ``[R]``: the keys of the rows, falling."""
    sums: Tensor
    """float64 ``[K]``: the sum of all rows seen."""
    absmax: float = 0.0
    """The largest magnitude seen."""
    count: int = 0
    """Number of rows seen."""

    @classmethod
    def empty(cls, width: int, capacity: int, seed: int) -> Reservoir:
        """A reservoir for rows of ``width`` values whose sample depends on ``seed`` alone."""
        return cls(
            capacity=capacity,
            generator=torch.Generator().manual_seed(seed),
            rows=torch.empty(0, width),
            keys=torch.empty(0),
            sums=torch.zeros(width, dtype=torch.float64),
        )

    @property
    def nbytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()

    def add(self, rows: Tensor) -> None:
        """Offer rows to the sample; only those that enter it are copied to the CPU.

        An error, such as too little memory, leaves the reservoir as it was.

        Args:
            rows: ``[R, K]``, finite, on any device; R >= 1.
        """
        sums, absmax = rows.sum(dim=0, dtype=torch.float32).cpu(), float(rows.abs().amax())
        keys = torch.rand(rows.shape[0], generator=self.generator)
        floor = float(self.keys[-1]) if len(self.keys) >= self.capacity else -1.0
        entering = torch.nonzero(keys > floor).flatten()
        kept = rows[entering.to(rows.device)].to("cpu", storage_dtype(rows.dtype))
        keys, order = torch.cat([self.keys, keys[entering]]).sort(descending=True)
        self.rows = torch.cat([self.rows.to(kept.dtype), kept])[order]
        self.keys = keys
        self.count += rows.shape[0]
        self.sums += sums
        self.absmax = max(self.absmax, absmax)
        self.shrink(self.capacity)

    def shrink(self, capacity: int) -> None:
        """Keep at most ``capacity`` rows, now and later."""
        self.capacity = capacity
        if len(self.keys) > capacity:
            self.keys, self.rows = self.keys[:capacity].clone(), self.rows[:capacity].clone()

    def summarize(self) -> InputStatistics:
        """The statistics of all rows seen, with the sample."""
        mean = (self.sums / max(self.count, 1)).to(torch.float32)
        return InputStatistics(mean=mean, absmax=self.absmax, rows=self.rows, count=self.count)


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit dtype that rows of ``dtype`` are kept in: their own, or bfloat16."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
