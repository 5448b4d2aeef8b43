"""Collecting the inputs of a model's layers as they come, in bounded memory."""

from __future__ import annotations

import math
import weakref
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .calibration import Calibration
from .reservoir import Reservoir

ROWS = 2048
"""Calibration rows kept of each layer, unless the user asks for another number."""
BUDGET = 2 << 30
"""Memory budget of all calibration rows together, in bytes, unless the user asks for another."""
CHUNK_ELEMENTS = 1 << 24
"""Input values processed at a time: recording needs little of the memory of the device that the model fills."""
SUM_ELEMENTS = 1 << 18
"""Input values summed at a time on a CPU: torch sums many wide rows in 16 bits slowly."""


class Collector:
    """Samples the inputs of each layer uniformly over all calls. Layers that get the same tensor share a sample.

    Args:
        rows: Most rows to keep of each layer.
        budget: Memory budget of all rows in bytes; beyond it, the number of rows is halved for all layers alike.
        seed: Changes which rows are drawn.
    """

    def __init__(self, *, rows: int = ROWS, budget: int = BUDGET, seed: int = 0) -> None:
        self.rows, self.budget, self.seed = rows, budget, seed
        self._reservoirs: dict[str, Reservoir] = {}
        self._leaders: dict[str, str] = {}
        """Layer -> the layer whose sample it shares; a leader is its own."""
        self._nbytes = 0
        self._last: tuple[weakref.ref[Tensor], str] | None = None
        """The last input sampled, and its layer. Weak: a strong reference would keep the input's memory in use."""

    def add(self, layer: str, inputs: Tensor) -> None:
        """Offer the input of one call of ``layer``.

        Args:
            layer: The layer's name.
            inputs: ``[..., K]``, any floating dtype, on any device. Rows with NaN or infinite values are left out.
        """
        leader = self._last[1] if self._last is not None and self._last[0]() is inputs else layer
        if self._leaders.setdefault(layer, leader) == leader != layer:
            return
        self._leaders[layer] = layer
        self._last = (weakref.ref(inputs), layer)
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        if rows.numel() <= CHUNK_ELEMENTS:
            self._sample(layer, rows)
        else:
            for chunk in torch.split(rows, max(1, CHUNK_ELEMENTS // rows.shape[1])):
                self._sample(layer, chunk)
        self._fit_budget()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def finish(self, fingerprints: Mapping[str, str] | None = None) -> Calibration:
        """The calibration of all layers of which a row was sampled; collecting may go on after it.

        Args:
            fingerprints: `fingerprint` of the layers' weights, by layer.
        """
        samples = {layer: reservoir.summarize() for layer, reservoir in self._reservoirs.items()}
        shared = {layer: leader for layer, leader in self._leaders.items() if leader in samples}
        return Calibration(samples=samples, shared=shared, fingerprints=dict(fingerprints or {}))

    def _sample(self, layer: str, rows: Tensor) -> None:
        if rows.shape[0] == 0:
            return
        sums, absmax = _summarize(rows)
        if not math.isfinite(absmax):
            rows = rows[torch.isfinite(rows).all(dim=1)]
            if rows.shape[0] == 0:
                return
            sums, absmax = _summarize(rows)
        if layer not in self._reservoirs:
            seed = zlib.crc32(layer.encode()) ^ self.seed
            self._reservoirs[layer] = Reservoir.empty(rows.shape[1], self.rows, seed)
        reservoir = self._reservoirs[layer]
        before = reservoir.nbytes
        reservoir.add(rows, sums, absmax)
        self._nbytes += reservoir.nbytes - before

    def _fit_budget(self) -> None:
        while self._nbytes > self.budget and self.rows > 1:
            self.rows //= 2
            for reservoir in self._reservoirs.values():
                reservoir.shrink(self.rows)
            self._nbytes = sum(reservoir.nbytes for reservoir in self._reservoirs.values())


def _summarize(rows: Tensor) -> tuple[NDArray[np.float32], float]:
    """Sum rows ``[R, K]`` and find their largest magnitude, which is NaN or infinite if one of them is not finite.

    Everything comes from another device in one copy.

    Returns:
        The sum, ``[K]``, and the largest magnitude.
    """
    extremes = torch.aminmax(rows)
    if rows.device.type == "cpu":
        return _sum_in_pieces(rows).numpy(), max(-float(extremes.min), float(extremes.max))
    sums = rows.sum(dim=0, dtype=torch.float32)
    numbers = torch.cat([sums, torch.stack(extremes).to(torch.float32)]).cpu()
    low, high = numbers[-2:].tolist()
    return numbers[:-2].numpy(), max(-low, high)


def _sum_in_pieces(rows: Tensor) -> Tensor:
    """Sum rows ``[R, K]`` on the CPU; returns float32 ``[K]``."""
    first, *others = torch.split(rows, max(1, SUM_ELEMENTS // rows.shape[1]))
    sums = first.sum(dim=0, dtype=torch.float32)
    for piece in others:
        sums += piece.sum(dim=0, dtype=torch.float32)
    return sums
