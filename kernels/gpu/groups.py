"""Launches the kernel of `jit.groups`; same function and results as `eager.groups`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..eager.groups import GroupGrid, RoundedGroup
from .device import OPTIONS, use_device
from .jit import groups as jit

TILE = 64
"""Rows of a program. Not measured: with four warps a thread keeps two groups of 16 in 16 registers."""

WARPS = 4


def round_group(
    grid: GroupGrid, weight: Tensor, targets: Tensor, factor: Tensor, pivots: Tensor, scales: Tensor
) -> RoundedGroup:
    """See `eager.groups.round_group`. Rows of weights, targets and scales are contiguous."""
    columns, rows = weight.shape
    errors, scale, cost = torch.empty_like(targets), torch.empty_like(scales[0]), torch.empty_like(scales[0])
    with use_device(weight):
        jit.round_group[(-(-rows // TILE),)](
            weight, targets, factor, pivots, scales, grid.levels, grid.places, errors, scale, cost,
            columns, len(scales), rows, len(grid.places), grid.density, grid.offset,
            weight.stride(0), targets.stride(0), *factor.stride(), pivots.stride(0), scales.stride(0), errors.stride(0),
            COLUMNS=1 << (columns - 1).bit_length(), TILE=TILE, INTEGER=grid.integer, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip
    return RoundedGroup(errors=errors, scale=scale, cost=cost)
