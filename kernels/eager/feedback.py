"""Error feedback within a block of inputs, one input after the other; what lies between blocks is matrix products.

What the rounding of later inputs makes of an earlier one is in `quant`'s error feedback (LDLQ: Chee et al., arXiv
2307.13304, section 3). Everything is float32 and by input, so that what an input has is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Grid(Protocol):
    """The values of codes, as a floating-point format: those of exponent ``e`` are multiples of 2 to the power of
    ``max(e, smallest_exponent) - mantissa_bits``, up to ``maximum`` on both sides.

    encode: the nearest codes of float32 values, halves to even, saturating.
    """

    @property
    def maximum(self) -> float: ...
    @property
    def mantissa_bits(self) -> int: ...
    @property
    def smallest_exponent(self) -> int: ...
    def encode(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Inputs:
    """B inputs of N outputs: weight and scale ``[B, N]``, of which the scale may be expanded, within ``[B, B]``.

    limits: the lowest and the highest value ``[B, N]`` that a code may have, in units of the grid.
    """

    weight: Tensor
    scale: Tensor
    within: Tensor
    grid: Grid
    limits: tuple[Tensor, Tensor] | None = None

    def rounded(self, target: Tensor, i: int) -> Tensor:
        """The dequantized weights ``[N]`` of input ``i`` nearest to ``target [N]`` that grid and limits allow."""
        scale = self.scale[i]
        scaled = target / scale
        if self.limits is not None:
            low, high = self.limits
            scaled = scaled.maximum(low[i]).minimum(high[i])
        return self.grid.encode(scaled).to(torch.float32).mul_(scale)


def feed_back(inputs: Inputs, targets: Tensor, errors: Tensor) -> None:
    """Round from the last input to the first: ``errors[i]`` is that of rounding ``targets[i] - sum_{j > i} within[i, j]
    errors[j]``.

    ``targets [B, N]`` is only read, ``errors [B, N]`` only written.
    """
    for i in range(len(targets) - 1, -1, -1):
        target = targets[i] - inputs.within[i, i + 1 :] @ errors[i + 1 :]
        errors[i] = inputs.rounded(target, i) - inputs.weight[i]


def descend(inputs: Inputs, gradient: Tensor, errors: Tensor) -> None:
    """Round each input, from the first on, to where the cost is least while all others stay; changes ``errors [B, N]``.

    ``within`` is the metric's block on the diagonal and ``gradient [B, N]`` half the cost's gradient with respect to
    the errors; it holds nothing of use afterwards.
    """
    curvature = inputs.within.diagonal()
    for i in range(len(gradient)):
        best = inputs.weight[i] + errors[i] - gradient[i] / curvature[i]
        change = inputs.rounded(best, i) - inputs.weight[i] - errors[i]
        errors[i] += change
        gradient.addr_(inputs.within[:, i], change)
