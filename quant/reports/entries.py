"""Parts of a report: one value for each quantized layer, for each kept tensor, and for the totals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..files.tensors import is_layer
from ..layer.layer_errors import PAIRS, ErrorPair, LayerErrors
from ..notices import Notice


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One quantized layer."""

    name: str
    """Full key without ``.weight``."""
    shape: tuple[int, int]
    format: str
    group: int | None
    """Rotation group, None if not rotated."""
    bytes_before: int
    """Of the float weight."""
    bytes_after: int
    """Of codes, scales and marker."""
    errors: LayerErrors
    reason: str
    """Why the layer is quantized."""
    notes: tuple[Notice, ...] = ()
    effect: float | None = None
    """Estimated mean squared change of the model's output by the layer's error: its sensitivity times the mean squared
    norm by which its output rows change. None if the sensitivity was not measured.
    """

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerReport:
        notes = tuple(Notice.from_dict(note) for note in data["notes"])
        errors = LayerErrors.from_dict(data["errors"])
        return cls(**{**data, "shape": tuple(data["shape"]), "errors": errors, "notes": notes})


@dataclass(frozen=True, kw_only=True)
class KeptReport:
    """One tensor that stays in floating point (or is no float at all)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes_before: int
    bytes_after: int
    reason: str
    source: str
    """Who found the reason: a profile's rule, the recipe, the format."""

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer's weight, which could be quantized; not a bias, a norm or a convolution."""
        return is_layer(self.name, self.shape)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KeptReport:
        return cls(**{**data, "shape": tuple(data["shape"])})


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums and means of a report. Errors are root mean squares over the layers that have them."""

    layers: int
    kept_layers: int
    kept_bytes: int
    """Of the kept layers' weights."""
    other_tensors: int
    """Norms, biases and whatever else is no layer."""
    other_bytes: int
    bytes_before: int
    bytes_after: int
    weight: ErrorPair | None
    output_w8a16: ErrorPair | None
    output_w8a8: ErrorPair | None
    projected: ErrorPair | None
    fell_back: int
    """Layers that fell back to nearest rounding."""

    @property
    def pairs(self) -> dict[str, ErrorPair]:
        """The pairs that were measured, by field."""
        return {name: pair for name in PAIRS if (pair := getattr(self, name)) is not None}
