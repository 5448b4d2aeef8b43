"""NVFP4: 4-bit floats with an E4M3 scale for 16 inputs, and one float32 scale for the whole weight.

A scale of 16 inputs maps their largest magnitude to 6, the last E2M1 number, and the scale of the weight maps the
largest of these scales to 448, the last E4M3 number (comfy-kitchen 0.2.40, bit for bit).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..parallel import run_all
from .group_scales import GroupScales, by_group
from .grouped import E4M3, FindScale, GroupedFormat, load_constants
from .weight_rows import WeightRows

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1 numbers by their three lower bits; the fourth is the sign."""

TABLE = (*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES))
ORDER = (*range(15, 8, -1), *range(8))
"""Codes from -6 to 6; -0 (8) is left out."""

LARGEST_SCALE = 448.0
SEARCHED = (6.0, 4.0)
"""Numbers that the search maps a group's largest magnitude to: 4 and 6 lie far apart, so that 4 may fit better."""


@dataclass(frozen=True, kw_only=True)
class Nvfp4Format(GroupedFormat):
    """A `GroupedFormat` that rounds as comfy-kitchen does: halves to even, small negative weights to -0."""

    def round(self, weight: Tensor, scale: GroupScales) -> Tensor:
        total = (scale.channel * scale.group.to(torch.float32))[..., None]
        scaled = torch.where(total == 0, 0.0, by_group(weight, self.group) / total)
        nearest = round_e2m1(scaled)
        magnitudes = load_constants(MAGNITUDES, torch.float32, weight.device)
        codes = torch.searchsorted(magnitudes, nearest.abs()) + 8 * torch.signbit(scaled)
        return codes.to(torch.uint8).flatten(1)

    def round_inputs(self, rows: Tensor, input_scale: float | None = None) -> Tensor:
        """As `Format.round_inputs`; without an ``input_scale`` ComfyUI takes the largest input of each call."""
        channel = find_channel(WeightRows.of(rows), self) if input_scale is None else rows.new_tensor(input_scale)
        scale = GroupScales(group=_relate(rows, self, channel, SEARCHED[0]), channel=channel)
        return self.dequantize(self.round(rows, scale), scale)


def round_e2m1(x: Tensor) -> Tensor:
    """Nearest E2M1 number of float32 ``x``, halves to even, saturating."""
    size = x.abs()
    step = 0.5 * (1.0 + size.ge(2.0) + 2.0 * size.ge(4.0))
    return (x / step).round_().mul_(step).clamp_(-MAGNITUDES[-1], MAGNITUDES[-1])


def find_largest(weight: Tensor, fmt: GroupedFormat, channel: Tensor | None) -> GroupScales:
    """Scales that map the largest magnitude of each group to 6."""
    assert channel is not None
    return GroupScales(group=_relate(weight, fmt, channel, SEARCHED[0]), channel=channel)


def search_largest(weight: Tensor, fmt: GroupedFormat, channel: Tensor | None) -> GroupScales:
    """The same, each group's largest magnitude mapped to 6 or 4, whichever leaves the smaller squared error."""
    best = find_largest(weight, fmt, channel)
    best_error = _square_errors(weight, best, fmt)
    other = GroupScales(group=_relate(weight, fmt, best.channel, SEARCHED[1]), channel=best.channel)
    better = _square_errors(weight, other, fmt) < best_error
    group = torch.where(better, other.group.view(torch.uint8), best.group.view(torch.uint8))
    return GroupScales(group=group.view(E4M3), channel=best.channel)


def find_channel(rows: WeightRows, fmt: GroupedFormat) -> Tensor:
    """The scale of a weight; 1 for a weight of zeros, where comfy-kitchen writes NaN."""
    amax = torch.stack(run_all(lambda part: rows.load(part).abs().amax(), rows.parts)).amax()
    return torch.where(amax > 0, amax / (LARGEST_SCALE * MAGNITUDES[-1]), 1.0)


def _relate(weight: Tensor, fmt: GroupedFormat, channel: Tensor, largest: float) -> Tensor:
    amax = by_group(weight, fmt.group).abs().amax(dim=-1)
    return (amax / largest / channel).clamp(max=LARGEST_SCALE).to(E4M3)


def _square_errors(weight: Tensor, scale: GroupScales, fmt: GroupedFormat) -> Tensor:
    error = fmt.dequantize(fmt.round(weight, scale), scale).sub_(weight)
    return by_group(error.square_(), fmt.group).sum(dim=-1)


METHODS: Mapping[str, FindScale] = {"absmax": find_largest, "mse": search_largest}
