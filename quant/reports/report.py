"""What a run did, layer by layer: one value that the command line, the nodes, the web page and JSON all show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..planning.size_curve import SizeCurve
from ..text import dimensions, left_lines, megabytes, table

PAIRS = (
    ("projected", "projected_error", "projected_nearest"),
    ("output", "output_error", "output_nearest"),
    ("as run", "run_error", "run_nearest"),
)
"""What is shown of a layer beside nearest's: a title, the figure, and that of nearest rounding."""


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer. error: ||W_q - W|| / ||W||; sqnr_db: the same as a signal-to-noise ratio in decibels.

    projected_error and projected_nearest: the error left on the leading singular directions, after rounding, and what
    nearest rounding leaves there. output_error and output_nearest: the error of the layer's output on inputs that
    nothing was learned from, and nearest's. run_error and run_nearest: the same where the host rounds the inputs too,
    as its 8-bit products do. Each is None where not computed. seconds: wall time of the layer.
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
    run_error: float | None
    run_nearest: float | None
    fell_back: bool
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
    reason. precision: where the formats were chosen by measurement, what every size would cost.
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
    precision: SizeCurve | None = None

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers) + sum(kept.bytes_before for kept in self.kept)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers) + sum(kept.bytes_after for kept in self.kept)

    @property
    def mean_error(self) -> float:
        """Relative weight error, root mean square over the layers."""
        return self.mean("error") or 0.0

    def mean(self, figure: str) -> float | None:
        """Root mean square of a relative error over the layers that have it; None if none has."""
        values = [value for layer in self.layers if (value := getattr(layer, figure)) is not None]
        return math.sqrt(sum(value**2 for value in values) / len(values)) if values else None

    @property
    def fell_back(self) -> int:
        return sum(layer.fell_back for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        totals = {
            "layers": len(self.layers),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "mean_error": self.mean_error,
            "fell_back": self.fell_back,
            **{figure: self.mean(figure) for _, *pair in PAIRS for figure in pair},
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
        values["precision"] = SizeCurve.from_dict(data["precision"]) if data.get("precision") else None
        return cls(**values)

    def table(self) -> str:
        """A readable table: a line for each layer, what was left and why, and the totals."""
        pairs = [pair for pair in PAIRS if self.mean(pair[1]) is not None]
        head = ("layer", "shape", "format", "MB", "error", "dB", *(t for pair in pairs for t in (pair[0], "nearest")))
        rows = [(*head, "notes"), *(_layer_row(layer, pairs) for layer in self.layers)]
        left = left_lines(((kept.name, kept.reason, kept.source) for kept in self.kept), self.removed)
        lines = table(rows, right=frozenset(range(3, len(head))))
        chosen = [] if self.precision is None else [*self.precision.lines(), ""]
        return "\n".join([*lines, "", *chosen, *left, *self.notes, self.summary()])

    def summary(self) -> str:
        """The totals in one line."""
        ratio = self.bytes_after / self.bytes_before if self.bytes_before else 1.0
        text = (
            f"{self.profile}: {len(self.layers)} layers quantized, {len(self.kept)} tensors kept; "
            f"{megabytes(self.bytes_before)} -> {megabytes(self.bytes_after)} MB ({ratio:.0%}), "
            f"weight error {self.mean_error:.4f}, {self.seconds:.1f} s"
        )
        error, before = self.mean("run_error"), self.mean("run_nearest")
        if error is not None and before is not None:
            text += f", output error as run {error:.4f} (nearest {before:.4f})"
        return text + (f", {self.fell_back} given back as nearest" if self.fell_back else "")


def decibels(error: float) -> float | None:
    """A relative error as a signal-to-noise ratio in dB; None for no error at all."""
    return -20 * math.log10(error) if error > 0 else None


def _layer_row(layer: LayerReport, pairs: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    noise = "-" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}"
    errors = [getattr(layer, figure) for _, *pair in pairs for figure in pair]
    notes = [*layer.notes, *(["given back as nearest"] if layer.fell_back else [])]
    return (
        layer.name,
        dimensions(layer.shape),
        layer.format,
        megabytes(layer.bytes_after),
        f"{layer.error:.5f}",
        noise,
        *("-" if error is None else f"{error:.5f}" for error in errors),
        "; ".join(notes),
    )
