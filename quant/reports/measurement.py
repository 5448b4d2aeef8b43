"""How close a quantized model is to its source: the figures that go with it, from the run to the model card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..layer.layer_errors import PAIRS, ErrorPair
from ..notices import Notice, render
from .report import Report

DIGITS = 4
"""Significant digits of an error in a header."""
WIDEST = 1.234e15
"""A number with as many characters in JSON as any error of `DIGITS` digits."""
LARGEST = 2**63
"""As long as any number of bytes or layers."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Sizes, and errors of the layers. Errors are root mean squares, as in `Totals`."""

    bytes_before: int
    bytes_after: int
    errors: Mapping[str, ErrorPair] = field(default_factory=dict)
    """The pairs of `LayerErrors` that were measured, by field."""
    fell_back: int = 0
    """Layers that fell back to nearest rounding."""
    calibration: str | None = None
    """SHA-256 of the calibration on whose held-out rows output errors were measured."""
    warnings: tuple[str, ...] = ()
    """Warnings of the run, in English."""

    @classmethod
    def of(cls, report: Report, calibration: str | None, notes: Iterable[Notice] | None = None) -> Measurement:
        """The figures of a run.

        Args:
            report: Of the run.
            calibration: Digest of the calibration.
            notes: In place of the report's own.
        """
        totals = report.totals
        errors = {name: ErrorPair(_shorten(p.error), _shorten(p.nearest)) for name, p in totals.pairs.items()}
        return cls(
            bytes_before=totals.bytes_before,
            bytes_after=totals.bytes_after,
            errors=errors,
            fell_back=totals.fell_back,
            calibration=calibration,
            warnings=_list_warnings(report.notes if notes is None else notes),
        )

    @classmethod
    def placeholder(cls, calibration: str | None, notes: Iterable[Notice]) -> Measurement:
        """At least as long in JSON as what is measured."""
        return cls(
            bytes_before=LARGEST,
            bytes_after=LARGEST,
            errors=dict.fromkeys(PAIRS, ErrorPair(WIDEST, WIDEST)),
            fell_back=LARGEST,
            calibration=calibration,
            warnings=_list_warnings(notes),
        )

    def to_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "errors": {name: [pair.error, pair.nearest] for name, pair in self.errors.items()},
            "fell_back": self.fell_back,
        }
        if self.calibration is not None:
            fields["calibration_sha256"] = self.calibration
        if self.warnings:
            fields["warnings"] = list(self.warnings)
        return fields

    @classmethod
    def from_dict(cls, data: Any) -> Measurement | None:
        """Read what `to_dict` wrote; None for anything else."""
        try:
            counts = {name: _read_count(data[name]) for name in ("bytes_before", "bytes_after", "fell_back")}
            errors = {name: _read_pair(data["errors"][name]) for name in PAIRS if name in data["errors"]}
            digest, warnings = data.get("calibration_sha256"), data.get("warnings", [])
            return cls(
                **counts,
                errors=errors,
                calibration=digest if isinstance(digest, str) else None,
                warnings=tuple(str(text) for text in warnings),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


def _list_warnings(notes: Iterable[Notice]) -> tuple[str, ...]:
    return tuple(render(note) for note in notes if note.level == "warning")


def _shorten(error: float) -> float:
    return float(f"{error:.{DIGITS}g}")


def _read_count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a count")
    return value


def _read_pair(value: Any) -> ErrorPair:
    error, nearest = (float(number) for number in value)
    if not (math.isfinite(error) and math.isfinite(nearest)):
        raise ValueError("not finite")
    return ErrorPair(error, nearest)
