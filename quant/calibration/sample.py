"""A bounded uniform sample of the input rows of each layer, taken while a model runs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .file import Calibration
from .statistics import InputStatistics

ROWS = 2048
BUDGET = 2 << 30
"""Bytes of input rows kept for all layers together."""
CHUNK_ELEMENTS = 1 << 24
"""Input values looked at together: a recording needs little of the memory of the device that the model fills."""


@dataclass
class Reservoir:
    """A uniform sample of at most ``capacity`` of all rows seen, as the rows with the largest of random keys.

    Any prefix by key of such a sample is a uniform sample too, so the capacity may shrink at any time.
    """

    capacity: int
    generator: torch.Generator
    rows: Tensor
    keys: Tensor
    total: Tensor
    absmax: float = 0.0
    count: int = 0

    @classmethod
    def empty(cls, width: int, capacity: int, seed: int) -> Reservoir:
        generator = torch.Generator().manual_seed(seed)
        return cls(capacity, generator, torch.empty(0, width), torch.empty(0), torch.zeros(width, dtype=torch.float64))

    @property
    def nbytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()

    def add(self, rows: Tensor) -> None:
        """Offer ``rows [R, K]`` on any device; only those that enter the sample are copied to the host.

        An error, as where memory does not suffice, leaves all as it was.
        """
        total, absmax = rows.sum(dim=0, dtype=torch.float32).cpu(), float(rows.abs().amax())
        keys = torch.rand(rows.shape[0], generator=self.generator)
        floor = float(self.keys[-1]) if len(self.keys) >= self.capacity else -1.0
        entering = torch.nonzero(keys > floor).flatten()
        kept = rows[entering.to(rows.device)].to("cpu", storage_dtype(rows.dtype))
        keys, order = torch.cat([self.keys, keys[entering]]).sort(descending=True)
        self.rows = torch.cat([self.rows.to(kept.dtype), kept])[order]
        self.keys = keys
        self.count += rows.shape[0]
        self.total += total
        self.absmax = max(self.absmax, absmax)
        self.shrink(self.capacity)

    def shrink(self, capacity: int) -> None:
        self.capacity = capacity
        if len(self.keys) > capacity:
            self.keys, self.rows = self.keys[:capacity].clone(), self.rows[:capacity].clone()

    def statistics(self) -> InputStatistics:
        mean = (self.total / max(self.count, 1)).to(torch.float32)
        return InputStatistics(mean, self.absmax, self.rows, self.count)


@dataclass
class Collector:
    """Takes the inputs of layers as they come, and samples each uniformly over all calls.

    rows: at most so many a layer; fewer, for all layers alike, once they would take more than ``budget`` bytes. Layers
    that are fed the same tensor share a sample.
    """

    rows: int = ROWS
    budget: int = BUDGET
    seed: int = 0
    _reservoirs: dict[str, Reservoir] = field(default_factory=dict)
    _leaders: dict[str, str] = field(default_factory=dict)
    _last: tuple[Tensor, str] | None = None

    def add(self, layer: str, inputs: Tensor) -> None:
        """Offer one call's input ``[..., K]`` of ``layer``. Rows with NaN or infinite values are an error of the
        model's and are left out."""
        leader = self._last[1] if self._last is not None and self._last[0] is inputs else layer
        if self._leaders.setdefault(layer, leader) == leader != layer:
            return
        self._leaders[layer] = layer
        self._last = (inputs, layer)
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        for part in torch.split(rows, max(1, CHUNK_ELEMENTS // rows.shape[1])):
            self._sample(layer, part)
        self._fit_budget()

    def _sample(self, layer: str, rows: Tensor) -> None:
        finite = torch.isfinite(rows).all(dim=1)
        rows = rows if bool(finite.all()) else rows[finite]
        if rows.shape[0] == 0:
            return
        if layer not in self._reservoirs:
            seed = zlib.crc32(layer.encode()) ^ self.seed
            self._reservoirs[layer] = Reservoir.empty(rows.shape[1], self.rows, seed)
        self._reservoirs[layer].add(rows)

    def release(self) -> None:
        """Let go of the last input seen, which is held only to recognise layers that share it."""
        self._last = None

    @property
    def nbytes(self) -> int:
        return sum(reservoir.nbytes for reservoir in self._reservoirs.values())

    def finish(self, fingerprints: Mapping[str, str] | None = None) -> Calibration:
        self.release()
        samples = {layer: reservoir.statistics() for layer, reservoir in self._reservoirs.items()}
        shared = {layer: leader for layer, leader in self._leaders.items() if leader in samples}
        return Calibration(samples, shared, dict(fingerprints or {}))

    def _fit_budget(self) -> None:
        while self.nbytes > self.budget and self.rows > 1:
            self.rows //= 2
            for reservoir in self._reservoirs.values():
                reservoir.shrink(self.rows)


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """Rows are kept in two bytes a value: what the model computes in, or bfloat16."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
