"""LDLQ within a group of columns that share a scale, where the grid depends on the scale (4 and 6 bits).

The scale of each row's group is chosen among candidates by what the group costs then: the columns are rounded for every
candidate, side by side. All tensors are float32. Weights are transposed, ``[columns, rows]``, and in units of the
grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127.0
"""Largest magnitude of a grid point that is a whole number."""


MOST_BINS = 4096
"""Most entries of a table of places: enough for levels that differ by a thousandth of their range."""


@dataclass(frozen=True, kw_only=True)
class GroupGrid:
    """Grid points of a group: ``level * scale``, rounded to whole numbers if `integer`."""

    levels: Tensor
    """Ascending, float32 ``[L + 2]``; the first and the last level stand there twice, so that all have neighbours."""

    places: Tensor
    """int32 ``[bins]``: place in `levels` of the level nearest to the middle of each bin."""

    density: float
    """Bins per unit of levels."""

    offset: float
    """Bin of level 0."""

    integer: bool
    """Whether grid points are rounded to whole numbers from -127 to 127."""

    @classmethod
    def of(cls, levels: Tensor, integer: bool) -> GroupGrid:
        """Build the table of places.

        Bins are no wider than half the distance between neighbouring levels: the point nearest to a target is then that
        of its bin's level, or the next one on the target's side, even if points are rounded to whole numbers.

        Args:
            levels: float32 ``[L]``, ascending.
            integer: Whether grid points are whole numbers.
        """
        low, high = float(levels[0]), float(levels[-1])
        gap = float(levels.diff().min())
        bins = min(MOST_BINS, math.ceil(2 * (high - low) / gap)) if gap > 0 else MOST_BINS
        density = bins / (high - low)
        middles = low + (torch.arange(bins, device=levels.device) + 0.5) / density
        places = torch.bucketize(middles, (levels[1:] + levels[:-1]) / 2, out_int32=True) + 1
        padded = torch.cat([levels[:1], levels, levels[-1:]])
        return cls(levels=padded, places=places, density=density, offset=-low * density, integer=integer)

    def round(self, target: Tensor, scale: Tensor, inverse: Tensor) -> Tensor:
        """Return the grid points nearest to ``target``.

        Args:
            target: ``[C, N]``.
            scale: ``[C, N]``.
            inverse: ``1 / scale``.
        """
        bins = (target * inverse).mul_(self.density).add_(self.offset).clamp_(max=len(self.places) - 1)
        # As whole numbers NaN, which overflowing weights lead to, is some bin too.
        places = self.places.index_select(0, bins.to(torch.int32).clamp_(min=0).view(-1)).view(target.shape)
        nearest = self._decode(places, scale)
        other = self._decode(places.add_((target > nearest).to(torch.int32), alpha=2).sub_(1), scale)
        closer = (other - target).abs_() < (nearest - target).abs_()
        return torch.where(closer, other, nearest)

    def _decode(self, places: Tensor, scale: Tensor) -> Tensor:
        points = self.levels.index_select(0, places.view(-1)).view(places.shape).mul_(scale)
        return points.round_().clamp_(-LARGEST, LARGEST) if self.integer else points


@dataclass(frozen=True, kw_only=True)
class RoundedGroup:
    """A rounded group of B columns of a weight with N rows."""

    errors: Tensor
    """Rounded minus float weights, ``[B, N]``."""

    scale: Tensor
    """``[N]``, each one of the row's candidates."""

    cost: Tensor
    """``[N]``: the share of ``tr(E H E^T)`` that cannot be made up for by other columns."""


def round_group(
    grid: GroupGrid,
    weight: Tensor,
    targets: Tensor,
    factor: Tensor,
    pivots: Tensor,
    scales: Tensor,
    costs: Sequence[float] | None = None,
) -> RoundedGroup:
    """Round a group's columns from the last to the first, with the candidate scale of least cost in each row.

    Column ``i`` is rounded from ``targets[i] - sum_{j > i} factor[i, j] errors[j]``; its distance from there, squared,
    costs ``pivots[i]``. The first of equally good candidates is chosen.

    Args:
        grid: What codes stand for.
        weight: Float weights ``[B, N]``.
        targets: Weights less the feedback from other groups, ``[B, N]``.
        factor: Block of ``L^T`` on the diagonal, ``[B, B]``; only entries above its own diagonal are read.
        pivots: Block of D, ``[B]``, of ``H = L D L^T``.
        scales: Candidates ``[C, N]``, above 0.
        costs: ``pivots`` as numbers; None: they are read.
    """
    (columns, rows), count = weight.shape, len(scales)
    errors = weight.new_empty(columns, count, rows)
    cost, inverses = torch.zeros_like(scales), scales.reciprocal()
    # As numbers: a product with a tensor of one element takes longer than one with a number.
    costs = pivots.tolist() if costs is None else costs
    for i in range(columns - 1, -1, -1):
        feedback = factor[i, i + 1 :] @ errors[i + 1 :].view(-1, count * rows)
        target = targets[i] - feedback.view(count, rows)
        rounded = grid.round(target, scales, inverses)
        torch.sub(rounded, weight[i], out=errors[i])
        cost.add_(rounded.sub_(target).square_(), alpha=costs[i])
    best = cost.argmin(dim=0, keepdim=True)
    chosen = errors.gather(1, best.expand(columns, 1, rows)).squeeze(1)
    return RoundedGroup(errors=chosen, scale=scales.gather(0, best)[0], cost=cost.gather(0, best)[0])
