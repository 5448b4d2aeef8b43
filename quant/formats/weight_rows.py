"""A weight that is loaded some rows at a time, so that it need not be in memory as float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..parallel import run_all


@dataclass(frozen=True)
class WeightRows:
    """A weight, float32 ``[N, K]`` as it is stored: padded and rotated."""

    shape: tuple[int, int]

    load: Callable[[slice], Tensor]
    """Loads one of `parts`, ``[n, K]``."""

    parts: Sequence[slice]
    """Consecutive rows that are loaded at a time: the result of a row could depend on its neighbours."""

    @classmethod
    def of(cls, weight: Tensor) -> WeightRows:
        """Wrap a weight that is in memory."""
        rows, columns = weight.shape
        return cls((rows, columns), weight.__getitem__, [slice(0, rows)])

    def sample(self, most: int) -> Tensor:
        """Return ``most`` evenly spaced rows, or all of them if there are no more."""
        height = self.shape[0]
        if height <= most:
            return torch.cat(run_all(self.load, self.parts))
        chosen = torch.linspace(0, height - 1, most).long()

        def pick(part: slice) -> Tensor:
            first, last = torch.searchsorted(chosen, torch.tensor([part.start, part.stop])).tolist()
            rows = self.load(part)
            return rows[(chosen[first:last] - part.start).to(rows.device)]

        return torch.cat(run_all(pick, self.parts))
