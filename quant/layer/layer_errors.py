"""The errors of a quantized layer: one value from the measurement to the report, the page and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .workspace import Workspace


@dataclass(frozen=True)
class ErrorPair:
    """A relative error and, for comparison, the error of nearest rounding with the same scales. Both are finite."""

    error: float
    nearest: float

    @property
    def decibels(self) -> float | None:
        """The error as a signal-to-noise ratio; None for no error at all."""
        return decibels(self.error)

    @classmethod
    def of(cls, error: float, nearest: float) -> ErrorPair | None:
        """The pair, or None if either is NaN or infinite: an error that overflowed is not known."""
        return cls(error, nearest) if math.isfinite(error) and math.isfinite(nearest) else None


CHUNK_ELEMENTS = 1 << 20
"""Values that are taken to float64 at a time."""

PAIRS = ("weight", "output_w8a16", "output_w8a8", "projected")
"""The fields of `LayerErrors` that are pairs; JSON, the page and CSV call them the same."""


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """Everything that was measured of one quantized layer. A pair is None if it was not measured."""

    weight: ErrorPair
    """``||W_q - W|| / ||W||``; 0 for a weight of zeros."""
    output_w8a16: ErrorPair | None = None
    """``||X (W_q - W)^T|| / ||X W^T||`` on held-out rows X, inputs in float."""
    output_w8a8: ErrorPair | None = None
    """The same with inputs quantized as ComfyUI quantizes them."""
    projected: ErrorPair | None = None
    """The error on the leading directions that `svd` rounding minimizes."""
    fell_back: bool = False
    """Nearest rounding was kept for the whole layer."""
    seconds: float = 0.0
    """Wall time of quantizing and measuring."""

    @property
    def pairs(self) -> dict[str, ErrorPair]:
        """The pairs that were measured, by field."""
        return {name: pair for name in PAIRS if (pair := getattr(self, name)) is not None}

    @property
    def primary(self) -> ErrorPair:
        """The pair that judges a layer: the output error (W8A8) if it was measured, else the weight error."""
        return self.output_w8a8 or self.weight

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerErrors:
        """Read what `dataclasses.asdict` wrote."""
        pairs = {name: None if data[name] is None else ErrorPair(**data[name]) for name in PAIRS}
        return cls(**{**data, **pairs})


def decibels(error: float) -> float | None:
    """A relative error as a signal-to-noise ratio in dB; None for no error at all."""
    return -20 * math.log10(error) if error > 0 else None


def square_sum(values: Tensor) -> float:
    """Sum of squares in float64: in float32, squares overflow above 1.8e19."""
    return math.fsum(square_sums(values).tolist())


def square_sums(values: Tensor, workspace: Workspace | None = None) -> Tensor:
    """Sums of squares of chunks, float64, on the device of the values: reading them is what waits for it."""
    chunks = torch.split(values.reshape(-1), CHUNK_ELEMENTS)
    return torch.stack([_widen(chunk, workspace).square_().sum() for chunk in chunks])


def _widen(values: Tensor, workspace: Workspace | None) -> Tensor:
    """A copy in float64, in a buffer if there are any."""
    if workspace is None:
        return values.to(torch.float64)
    return workspace.take("wide", values.shape, torch.float64).copy_(values)


def relative_error(square_error: float, square: float) -> float:
    """``sqrt(square_error / square)``; 0 for a reference of zeros."""
    return 0.0 if square == 0 else math.sqrt(square_error / square)
