"""The memory that a layer takes at its peak, and whether its device has it.

In float32 values, for a weight ``[N, K]`` and R recorded rows:

    hessian * K^2 + weights * N K + rows * R (N + K)

`Peak` has the factors of each rounding method. ``tests/quant/layer/test_memory.py`` measures them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..calibration.statistics import NO_STATISTICS, InputStatistics, Statistics
from ..files.tensors import WEIGHT, TensorSpec, is_layer
from ..formats import FORMATS, Format, GroupedFormat
from ..recipe import AUTO, Recipe
from .operands import BLOCK_ELEMENTS

WORKSPACE = 1.2
"""What a device needs beside the tensors, relative to them: workspaces of its libraries, and gaps."""
FIXED_BYTES = 32 << 20
"""Blocks of a weight and products in progress."""


@dataclass(frozen=True)
class Peak:
    """Factors of the formula."""

    weights: float
    hessian: float = 0.0
    rows: float = 2.5


PEAKS: Mapping[str, Peak] = {
    "nearest": Peak(weights=2.0),
    "nearest, measured": Peak(weights=5.0),
    "calibrated": Peak(weights=8.0, hessian=2.2),
    "svd": Peak(weights=12.0),
    "svd, torch optimizer": Peak(weights=19.0),
    "svd, feedback": Peak(weights=8.0, hessian=2.2),
}
GROUPED_WEIGHTS = 14.0
"""Added to the factor of the weights for formats with scales of groups. Nearest rounding searches them in blocks of
rows, all others on whole weights."""


def peak_bytes(
    shape: tuple[int, int], recipe: Recipe, inputs: InputStatistics = NO_STATISTICS, fmt: Format | None = None
) -> int:
    """Bytes that quantizing a weight ``[N, K]`` takes at its peak on the device that computes, the weight included.

    Args:
        shape: of the weight.
        recipe: the settings.
        inputs: what a calibration knows of the layer's inputs.
        fmt: the format; None: one without groups.
    """
    height, width = shape
    rows = 0 if inputs.rows is None else len(inputs.rows)
    method = name_method(recipe, rows > 0)
    peak = PEAKS[method]
    values = peak.hessian * width**2 + peak.weights * height * width + peak.rows * rows * (height + width)
    if isinstance(fmt, GroupedFormat):
        values += GROUPED_WEIGHTS * min(height * width, BLOCK_ELEMENTS if method == "nearest" else height * width)
    return FIXED_BYTES + int(4 * values)


def largest_peak(tensors: Mapping[str, TensorSpec], recipe: Recipe, statistics: Statistics) -> int:
    """The largest `peak_bytes` of all weights of a model, in the format of the recipe that takes most."""
    formats = [FORMATS.get(name) for name in (recipe.format, *(recipe.formats if recipe.format == AUTO else ()))]
    fmt = next((fmt for fmt in formats if isinstance(fmt, GroupedFormat)), None)
    layers = {name.removesuffix(WEIGHT): s.shape for name, s in tensors.items() if is_layer(name, s.shape)}
    most = max(statistics.values(), key=lambda s: 0 if s.rows is None else len(s.rows), default=NO_STATISTICS)
    return max((peak_bytes((shape[0], shape[1]), recipe, most, fmt) for shape in layers.values()), default=0)


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether a device has so much memory left, as far as it says."""
    free = _free_bytes(device)
    return free is None or WORKSPACE * nbytes <= free


def name_method(recipe: Recipe, has_rows: bool) -> str:
    """Name of a layer's rounding in `PEAKS`."""
    if recipe.rounding == "calibrated" and has_rows:
        return "calibrated"
    if recipe.rounding == "svd":
        kinds = {"original": "svd", "feedback": "svd, feedback"}
        return kinds.get(recipe.svd.optimizer, "svd, torch optimizer")
    return "nearest, measured" if has_rows else "nearest"


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of a device with what torch holds of it and does not use; None if it cannot be asked."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused
