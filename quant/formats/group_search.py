"""Choosing scales of two levels for formats that decode to INT8 (``w4a8``, ``w6a8``).

Group scales are fitted to the levels by least squares in two passes. Then the largest level of each row is mapped to
127, and group scales are stored relative to that as E4M3. Rounding them, and the grid points, moves the optimum, so
that neighbouring E4M3 scales may be better: `search_neighbours` tries them on the decoded grid. Without
`search_neighbours` for 4 bits, and with it for 6, the scales are comfy-kitchen 0.2.40's bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .codebook import choose_codebook
from .group_scales import GroupScales, by_group
from .grouped import CHUNK_ELEMENTS, E4M3, FindScale, GroupedFormat, nearest_places
from .weight_rows import WeightRows

SMALLEST = 1e-8
"""Least scale of a group and of a row: weights far below it become zero."""

FIT_PASSES = 2
LARGEST_BITS = 0x7E
"""Bits of 448, the last finite E4M3 number."""

FindLevels = Callable[[Tensor], Tensor]
"""The nearest levels of weights in units of their group's scale."""

Fit = tuple[Tensor, Tensor]
"""Scale and levels of every group, float32 ``[n, K / g, 1]`` and ``[n, K / g, g]``."""


def share_codebook(rows: WeightRows, fmt: GroupedFormat) -> Tensor:
    """The codebook of ``w4a8``."""
    return choose_codebook(rows, fmt.group, SMALLEST)


def fit_normal(weight: Tensor, fmt: GroupedFormat, table: Tensor | None) -> GroupScales:
    """Scales of ``w4a8``: levels of a codebook."""
    assert table is not None

    def start(groups: Tensor) -> Tensor:
        return groups.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST)

    def nearest(relative: Tensor) -> Tensor:
        return table[nearest_places(table, relative)]

    scales = [_relate(_fit(groups, start(groups), nearest)) for groups in _chunks(weight, fmt)]
    return replace(GroupScales.join(scales), codebook=table)


def fit_uniform(weight: Tensor, fmt: GroupedFormat, shared: Tensor | None = None) -> GroupScales:
    """Scales of ``w6a8`` before the search: levels are whole numbers."""
    last = fmt.table[fmt.order[-1]]

    def start(groups: Tensor) -> Tensor:
        return (groups.abs().amax(dim=-1, keepdim=True) / last).clamp(min=SMALLEST)

    def nearest(relative: Tensor) -> Tensor:
        return relative.round().clamp_(-last, last)

    parts = [_relate(_fit(groups, start(groups), nearest)) for groups in _chunks(weight, fmt)]
    return GroupScales.join(parts)


def search_neighbours(weight: Tensor, scale: GroupScales, fmt: GroupedFormat, reach: int) -> GroupScales:
    """The same scales, each group's moved up to ``reach`` E4M3 numbers to where its squared error is least."""
    height = max(1, CHUNK_ELEMENTS // max(weight.shape[1], 1))
    parts = [slice(start, start + height) for start in range(0, weight.shape[0], height)]
    group = torch.cat([_search(weight[p], scale.rows(p), fmt, reach) for p in parts])
    return replace(scale, group=group.view(E4M3))


def _search(weight: Tensor, scale: GroupScales, fmt: GroupedFormat, reach: int) -> Tensor:
    """The bytes of some rows' scales: not every CUDA build joins tensors in FP8."""
    bits = scale.group.view(torch.uint8).to(torch.int16)
    target = by_group(weight / scale.row_channel, fmt.group)
    best, best_error = scale.group.view(torch.uint8), torch.full(scale.group.shape, torch.inf, device=weight.device)
    for step in sorted(range(-reach, reach + 1), key=lambda step: (abs(step), step)):
        moved = (bits + step).clamp_(1 if step else 0, LARGEST_BITS).to(torch.uint8)
        points = fmt.grid(replace(scale, group=moved.view(E4M3)))
        error = points.gather(-1, nearest_places(points, target)).sub_(target).square_().sum(dim=-1)
        better = error < best_error
        best, best_error = torch.where(better, moved, best), torch.where(better, error, best_error)
    return best


def _fit(groups: Tensor, scale: Tensor, nearest: FindLevels) -> Fit:
    """Fit scales of groups to their levels by least squares, and levels to their scales, in turn."""
    levels = nearest(groups / scale)
    for _ in range(FIT_PASSES):
        squares = (levels * levels).sum(dim=-1, keepdim=True).clamp(min=SMALLEST)
        scale = ((groups * levels).sum(dim=-1, keepdim=True) / squares).clamp(min=SMALLEST)
        levels = nearest(groups / scale)
    return scale, levels


def _relate(fit: Fit) -> GroupScales:
    """Scales of rows that map the row's largest level to 127, and scales of groups relative to them."""
    scale, levels = fit
    channel = ((levels * scale).abs().amax(dim=(1, 2)) / 127.0).clamp(min=SMALLEST)
    return GroupScales(group=(scale.squeeze(-1) / channel[:, None]).to(E4M3), channel=channel)


def _chunks(weight: Tensor, fmt: GroupedFormat) -> list[Tensor]:
    height = max(1, CHUNK_ELEMENTS // max(weight.shape[1], 1))
    return [by_group(rows, fmt.group) for rows in torch.split(weight, height)]


NORMAL_METHODS: Mapping[str, FindScale] = {
    "absmax": fit_normal,
    "mse": lambda weight, fmt, table: search_neighbours(weight, fit_normal(weight, fmt, table), fmt, reach=2),
}
UNIFORM_METHODS: Mapping[str, FindScale] = {
    "absmax": lambda weight, fmt, _: search_neighbours(weight, fit_uniform(weight, fmt), fmt, reach=1),
    "mse": lambda weight, fmt, _: search_neighbours(weight, fit_uniform(weight, fmt), fmt, reach=2),
}
