"""Codebooks of 16 levels for rotated weights, in units of the largest magnitude of each group of inputs.

The rotation makes weights nearly normal, so that one table of levels suits them all; ComfyUI's fast paths for few rows
know this table alone. Weights with heavy tails get a table of their own (comfy-kitchen 0.2.40 decides and fits alike).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .group_scales import by_group
from .weight_rows import WeightRows

NORMAL = (
    -0.980602,
    -0.794529,
    -0.638165,
    -0.500986,
    -0.377321,
    -0.263187,
    -0.155210,
    -0.050720,
    0.052541,
    0.156985,
    0.265284,
    0.379533,
    0.502636,
    0.638953,
    0.794876,
    0.980671,
)
"""Levels of least squared error for groups of 16 normal weights (Lloyd, Least Squares Quantization in PCM, 1982); the
numbers are a part of comfy-kitchen's file format, whose kernels hold the same ones."""

HEAVY = -0.1
"""Excess kurtosis of weights relative to their group's largest above which a table is fitted; normal ones have -0.5."""

TEST_SAMPLE = 1 << 19
FIT_SAMPLE = 300_000
FIT_STEPS = 25
ROW_SAMPLE = 1 << 22
"""Weights of the evenly spaced rows that decide for the whole weight."""


def choose_codebook(rows: WeightRows, group: int, smallest: float) -> Tensor:
    """The table for a rotated weight.

    Args:
        rows: of the weight, rotated.
        group: inputs that share a scale.
        smallest: least scale of a group.

    Returns:
        float32 ``[16]``, ascending.
    """
    weight = rows.sample(max(1, ROW_SAMPLE // max(rows.shape[1], 1)))
    groups = by_group(weight, group)
    relative = (groups / groups.abs().amax(dim=-1, keepdim=True).clamp(min=smallest)).flatten()
    if _excess_kurtosis(_draw(relative, TEST_SAMPLE)) <= HEAVY:
        return torch.tensor(NORMAL, device=weight.device)
    return fit_codebook(_draw(relative, FIT_SAMPLE), len(NORMAL))


def fit_codebook(values: Tensor, levels: int) -> Tensor:
    """Fit levels to values ``[n]`` by Lloyd's method, from their quantiles on."""
    table = torch.quantile(values, torch.linspace(0, 1, levels, device=values.device))
    for _ in range(FIT_STEPS):
        nearest = (values[:, None] - table).abs().argmin(dim=-1)
        members = [values[nearest == place] for place in range(levels)]
        table = torch.stack([m.mean() if len(m) else level for m, level in zip(members, table, strict=True)])
    return table.contiguous()


def _draw(values: Tensor, most: int) -> Tensor:
    """At most ``most`` of the values, drawn with replacement by a generator of their device, seeded with 0."""
    if len(values) <= most:
        return values
    generator = torch.Generator(device=values.device).manual_seed(0)
    return values[torch.randint(0, len(values), (most,), device=values.device, generator=generator)]


def _excess_kurtosis(values: Tensor) -> float:
    return float(((values - values.mean()) / (values.std() + 1e-9)).pow(4).mean() - 3.0)
