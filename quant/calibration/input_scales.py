"""Static scales of FP8 and NVFP4 inputs, computed from recorded inputs.

Without one, ComfyUI rounds the inputs of an FP8 layer with scale 1, and inputs beyond the grid saturate. For an NVFP4
layer it measures the largest input in every call: a static scale saves that, and larger inputs saturate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..formats import Format
from ..formats.scales import CANDIDATES, SMALLEST
from ..recipe import AUTO, OFF
from .statistics import LARGEST, InputStatistics

PERCENTILE = 0.9999
"""Share of the recorded input values that `percentile` leaves unclipped."""

HEADROOM = 2.0
"""Multiple of the largest recorded input that `AUTO` keeps below the grid's last point."""

Search = Callable[[Tensor, Tensor, Format], Tensor]
"""Recorded rows, float32 ``[R, K]``, their largest magnitude and the format -> the magnitude to map to the grid's last
point.
"""


def measure_input_scale(method: str, statistics: InputStatistics, fmt: Format) -> float | None:
    """The static scale of a layer's inputs.

    Args:
        method: one of `INPUT_SCALE_METHODS`; `OFF`; or `AUTO`, which writes a scale only where ComfyUI would take 1
            and inputs near the end of the grid were recorded, with `HEADROOM` for larger ones.
        statistics: without recorded rows the absolute maximum counts.
        fmt: of the layer.

    Returns:
        None if no scale is to be written: the format takes none, or no input was measured.
    """
    largest = statistics.absmax
    if method == OFF or largest is None or not fmt.static_input:
        return None
    if method == AUTO:
        with_headroom = min(HEADROOM * largest, LARGEST)
        saturates = with_headroom > fmt.input_maximum and not fmt.measures_inputs
        return _map_to_end(torch.tensor(with_headroom), fmt) if saturates else None
    amax = torch.tensor(largest)
    if statistics.rows is not None and len(statistics.rows):
        amax = INPUT_SCALE_METHODS[method](statistics.rows.to(torch.float32), amax, fmt)
    return _map_to_end(amax, fmt)


def _map_to_end(amax: Tensor, fmt: Format) -> float:
    """The scale that maps a magnitude to the grid's last point; 1 for 0."""
    return float((amax / fmt.input_maximum).clamp(min=SMALLEST)) if amax > 0 else 1.0


def _absmax(rows: Tensor, largest: Tensor, fmt: Format) -> Tensor:
    return largest


def _percentile(rows: Tensor, largest: Tensor, fmt: Format) -> Tensor:
    flat = rows.abs().flatten()
    # Not torch.quantile, which takes 16 million values at most.
    return flat.kthvalue(max(1, round(PERCENTILE * flat.numel()))).values


def _least_error(rows: Tensor, largest: Tensor, fmt: Format) -> Tensor:
    """The share of the largest magnitude, out of `CANDIDATES`, with the least squared error; ties go to the largest."""

    def error(share: float) -> float:
        return float((fmt.round_inputs(rows, _map_to_end(largest * share, fmt)) - rows).square_().sum())

    return largest * min(CANDIDATES, key=error)


INPUT_SCALE_METHODS: Mapping[str, Search] = {
    "absmax": _absmax,
    "percentile": _percentile,
    "mse": _least_error,
}
"""Method -> the magnitude that maps to the grid's last point; inputs beyond it are clipped."""
