"""What a run did, layer by layer: one value that the command line, the nodes, the web page and JSON all show."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from .text import dimensions, left_lines, megabytes, table


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer. error: ||W_q - W|| / ||W||; sqnr_db: the same as a signal-to-noise ratio in decibels.

    projected_error and projected_nearest: the error left on the leading singular directions, after rounding, and what
    nearest rounding leaves there. output_error and output_nearest: the error of the layer's output on held-out inputs,
    and nearest's. Each is None where not computed. seconds: wall time of the layer.
    """

    name: str
    shape: tuple[int, int]
    format: str
    group: int | None
    bytes_before: int
    bytes_after: int
    error: float
    sqnr_db: float | None
    projected_error: float | None
    projected_nearest: float | None
    output_error: float | None
    output_nearest: float | None
    given_back: bool
    seconds: float
    reason: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeptReport:
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes_before: int
    bytes_after: int
    reason: str
    source: str


@dataclass
class Report:
    """The whole run. kept: tensors left in floating point, with the reason. removed: tensors dropped, with the
    reason.
    """

    profile: str
    certain: bool
    recipe: dict[str, Any]
    versions: dict[str, str]
    layers: list[LayerReport] = field(default_factory=list)
    kept: list[KeptReport] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers) + sum(kept.bytes_before for kept in self.kept)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers) + sum(kept.bytes_after for kept in self.kept)

    @property
    def mean_error(self) -> float:
        """Relative weight error, root mean square over the layers."""
        return math.sqrt(sum(layer.error**2 for layer in self.layers) / len(self.layers)) if self.layers else 0.0

    @property
    def given_back(self) -> int:
        return sum(layer.given_back for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        totals = {
            "layers": len(self.layers),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "mean_error": self.mean_error,
            "given_back": self.given_back,
        }
        return asdict(self) | {"totals": totals}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        values = {key: value for key, value in data.items() if key != "totals"}
        values["layers"] = [
            LayerReport(**{**row, "shape": tuple(row["shape"]), "notes": tuple(row["notes"])}) for row in data["layers"]
        ]
        values["kept"] = [KeptReport(**{**row, "shape": tuple(row["shape"])}) for row in data["kept"]]
        return cls(**values)

    def table(self) -> str:
        """A readable table: a line for each layer, what was left and why, and the totals."""
        head = ("layer", "shape", "format", "MB", "error", "dB", "objective", "nearest", "notes")
        rows = [head, *map(_layer_row, self.layers)]
        left = left_lines(((kept.name, kept.reason, kept.source) for kept in self.kept), self.removed)
        return "\n".join([*table(rows, right=frozenset(range(3, 8))), "", *left, *self.notes, self.summary()])

    def summary(self) -> str:
        """The totals in one line."""
        ratio = self.bytes_after / self.bytes_before if self.bytes_before else 1.0
        text = (
            f"{self.profile}: {len(self.layers)} layers quantized, {len(self.kept)} tensors kept; "
            f"{megabytes(self.bytes_before)} -> {megabytes(self.bytes_after)} MB ({ratio:.0%}), "
            f"weight error {self.mean_error:.4f}, {self.seconds:.1f} s"
        )
        return text + (f", {self.given_back} given back as nearest" if self.given_back else "")


def decibels(error: float) -> float | None:
    """A relative error as a signal-to-noise ratio in dB; None for no error at all."""
    return -20 * math.log10(error) if error > 0 else None


def _layer_row(layer: LayerReport) -> tuple[str, ...]:
    noise = "-" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}"
    pair = (layer.projected_error, layer.projected_nearest)
    if layer.output_error is not None:
        pair = (layer.output_error, layer.output_nearest)
    objective = ["-" if error is None else f"{error:.5f}" for error in pair]
    notes = [*layer.notes, *(["given back as nearest"] if layer.given_back else [])]
    size = megabytes(layer.bytes_after)
    return (
        layer.name,
        dimensions(layer.shape),
        layer.format,
        size,
        f"{layer.error:.5f}",
        noise,
        *objective,
        "; ".join(notes),
    )
