"""Granularities: which weights share a scale. Weights are reduced to the shape of their scales and scales expanded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole weight; scale shape ``[]``."""

    rows: int = 1

    def scale_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return ()

    def amax(self, x: Tensor) -> Tensor:
        return x.abs().amax()

    def sum(self, x: Tensor) -> Tensor:
        return x.sum()

    def expand(self, scale: Tensor, shape: tuple[int, int]) -> Tensor:
        return scale


@dataclass(frozen=True)
class PerRow:
    """One scale for each output channel; scale shape ``[N, 1]``."""

    rows: int = 1

    def scale_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (shape[0], 1)

    def amax(self, x: Tensor) -> Tensor:
        # Two reductions are faster than one over magnitudes, which take memory.
        return torch.maximum(x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True).neg_())

    def sum(self, x: Tensor) -> Tensor:
        return x.sum(dim=1, keepdim=True)

    def expand(self, scale: Tensor, shape: tuple[int, int]) -> Tensor:
        return scale


@dataclass(frozen=True)
class PerBlock:
    """One scale for each ``rows x columns`` block; scale shape ``[ceil(N / rows), ceil(K / columns)]``."""

    rows: int
    columns: int

    def scale_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (-(-shape[0] // self.rows), -(-shape[1] // self.columns))

    def amax(self, x: Tensor) -> Tensor:
        return self._reduce(x.abs(), lambda blocks: blocks.amax(dim=(1, 3)))

    def sum(self, x: Tensor) -> Tensor:
        return self._reduce(x, lambda blocks: blocks.sum(dim=(1, 3)))

    def expand(self, scale: Tensor, shape: tuple[int, int]) -> Tensor:
        # A block may be larger than the weight, and is never expanded beyond it.
        tall = scale.repeat_interleave(min(self.rows, shape[0]), dim=0)[: shape[0]]
        return tall.repeat_interleave(min(self.columns, shape[1]), dim=1)[:, : shape[1]]

    def _reduce(self, x: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        high, wide = self.scale_shape((x.shape[0], x.shape[1]))
        missing = (0, wide * self.columns - x.shape[1], 0, high * self.rows - x.shape[0])
        return reduce(torch.nn.functional.pad(x, missing).view(high, self.rows, wide, self.columns))


Granularity = PerTensor | PerRow | PerBlock
