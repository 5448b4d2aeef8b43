"""Static scales of a layer's inputs, found once from recorded ones, for formats whose inputs the host can round with
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..formats import Format
from ..formats.scales import CANDIDATES, from_amax
from .statistics import InputStatistics

PERCENTILE = 0.9999
"""Share of the recorded input values that `percentile` leaves unclipped."""


def input_scale(method: str, known: InputStatistics, fmt: Format) -> Tensor:
    """The float32 scale ``[]`` of the inputs by one of `INPUT_SCALE_METHODS`; ``known.absmax`` must be measured.

    Without recorded rows it is the absolute maximum's.
    """
    largest = torch.tensor(known.absmax)
    if known.rows is None or len(known.rows) == 0:
        return from_amax(largest, fmt)
    return from_amax(INPUT_SCALE_METHODS[method](known.rows.to(torch.float32), largest, fmt), fmt)


def _absmax(rows: Tensor, largest: Tensor, fmt: Format) -> Tensor:
    return largest


def _percentile(rows: Tensor, largest: Tensor, fmt: Format) -> Tensor:
    flat = rows.abs().flatten()
    # Not torch.quantile, which takes 16 million values at most.
    return flat.kthvalue(max(1, round(PERCENTILE * flat.numel()))).values


def _least_error(rows: Tensor, largest: Tensor, fmt: Format) -> Tensor:
    """The one of `CANDIDATES` times the largest magnitude that leaves the least squared error; ties go to no
    clipping.
    """

    def error(share: float) -> float:
        scale = from_amax(largest * share, fmt)
        return float((fmt.grid.encode(rows / scale).to(torch.float32).mul_(scale) - rows).square_().sum())

    return largest * min(CANDIDATES, key=error)


INPUT_SCALE_METHODS: Mapping[str, Callable[[Tensor, Tensor, Format], Tensor]] = {
    "absmax": _absmax,
    "percentile": _percentile,
    "mse": _least_error,
}
