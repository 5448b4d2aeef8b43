"""LDLQ and coordinate descent within a block of columns, one column after the other.

What other blocks contribute is a matrix product, which the caller adds: see `quant`'s LDLQ rounding (Chee et al., arXiv
2307.13304, section 3). All tensors are float32. Weights are transposed, ``[columns, rows]``, so that a column is
contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

STEP = 32
"""Columns whose products with the columns behind them are taken together: a block of them stays in a fast cache."""


class Grid(Protocol):
    """The values that codes stand for before scaling, described as a floating-point format.

    Values of exponent ``e`` are multiples of ``2^(max(e, smallest_exponent) - mantissa_bits)``, up to ``maximum`` on
    both sides.
    """

    @property
    def maximum(self) -> float: ...
    @property
    def mantissa_bits(self) -> int: ...
    @property
    def smallest_exponent(self) -> int: ...
    def encode(self, x: Tensor) -> Tensor:
        """Return the nearest codes of float32 ``x``: halves to even, saturating."""


@dataclass(frozen=True, kw_only=True)
class ColumnBlock:
    """B columns of a weight with N rows."""

    weight: Tensor
    """Float weights ``[B, N]``."""

    scale: Tensor
    """Scales ``[B, N]``; may be expanded."""

    grid: Grid

    limits: tuple[Tensor, Tensor] | None = None
    """Lowest and highest value that each code may have, ``[B, N]`` in units of the grid. None: no limits."""

    def round_column(self, i: int, target: Tensor) -> Tensor:
        """Return the dequantized weights ``[N]`` of column ``i`` that are nearest to ``target [N]``."""
        scale = self.scale[i]
        scaled = target / scale
        if self.limits is not None:
            low, high = self.limits
            scaled = scaled.maximum(low[i]).minimum(high[i])
        return self.grid.encode(scaled).to(torch.float32).mul_(scale)


def ldlq_block(block: ColumnBlock, factor: Tensor, targets: Tensor, errors: Tensor) -> None:
    """Round a block's columns from the last to the first; each makes up for the errors of those rounded before it.

    Column ``i`` is rounded from ``targets[i] - sum_{j > i} factor[i, j] errors[j]``.

    Args:
        block: The columns.
        factor: Block of ``L^T`` on the diagonal, ``[B, B]``; only entries above its own diagonal are read.
        targets: Weights less the feedback from other blocks, ``[B, N]``; only read.
        errors: Receives the rounded minus the float weights, ``[B, N]``.
    """
    for stop in range(len(targets), 0, -STEP):
        start = max(0, stop - STEP)
        here = torch.addmm(targets[start:stop], factor[start:stop, stop:], errors[stop:], alpha=-1)
        for i in range(stop - 1, start - 1, -1):
            behind = slice(i + 1, stop)
            target = torch.addmv(here[i - start], errors[behind].T, factor[i, behind], alpha=-1)
            torch.sub(block.round_column(i, target), block.weight[i], out=errors[i])


def descend_block(block: ColumnBlock, hessian: Tensor, gradient: Tensor, errors: Tensor) -> None:
    """Move each column, from the first on, to the grid point of least cost while all others stay.

    Args:
        block: The columns.
        hessian: Block of the Hessian on the diagonal, ``[B, B]``.
        gradient: Half the gradient of the cost with respect to the errors, ``[B, N]``; overwritten.
        errors: Rounded minus float weights, ``[B, N]``; updated in place.
    """
    curvature = hessian.diagonal().tolist()
    for start in range(0, len(gradient), STEP):
        stop = min(start + STEP, len(gradient))
        before = errors[start:stop].clone()
        for i in range(start, stop):
            weight, error = block.weight[i], errors[i]
            best = (weight + error).sub_(gradient[i] / curvature[i])
            change = block.round_column(i, best).sub_(weight).sub_(error)
            error += change
            gradient[i + 1 : stop].addr_(hessian[i + 1 : stop, i], change)
        gradient[stop:].addmm_(hessian[stop:, start:stop], errors[start:stop] - before)
