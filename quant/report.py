"""What a run did, layer by layer: one value that the command line, the nodes, the web page and JSON all show."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer. error: ||W_q - W|| / ||W||; sqnr_db: the same as a signal-to-noise ratio in decibels.

    projected_error and projected_nearest: the error left on the leading singular directions, after rounding, and what
    nearest rounding leaves there; None where not computed. seconds: wall time of the layer.
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
        width = max([5, *(len(layer.name) for layer in self.layers)])
        head = (
            f"{'layer':<{width}}  {'shape':>13}  {'format':<14} {'MB':>8} {'error':>9} {'dB':>6} "
            f"{'projected/nearest':>17}  notes"
        )
        lines = [head, *(_layer_line(layer, width) for layer in self.layers)]
        return "\n".join([*lines, "", *self._left(), *self.notes, self.summary()])

    def summary(self) -> str:
        """The totals in one line."""
        ratio = self.bytes_after / self.bytes_before if self.bytes_before else 1.0
        text = (
            f"{self.profile}: {len(self.layers)} layers quantized, {len(self.kept)} tensors kept; "
            f"{_megabytes(self.bytes_before)} -> {_megabytes(self.bytes_after)} MB ({ratio:.0%}), "
            f"weight error {self.mean_error:.4f}, {self.seconds:.1f} s"
        )
        return text + (f", {self.given_back} given back as nearest" if self.given_back else "")

    def _left(self) -> list[str]:
        groups: dict[str, list[str]] = {}
        for kept in self.kept:
            groups.setdefault(f"kept: {kept.reason}", []).append(kept.name)
        for name, reason in self.removed.items():
            groups.setdefault(f"removed: {reason}", []).append(name)
        return [f"{reason} ({len(names)}): {_shortened(names)}" for reason, names in groups.items()]


def decibels(error: float) -> float | None:
    """A relative error as a signal-to-noise ratio in dB; None for no error at all."""
    return -20 * math.log10(error) if error > 0 else None


def _layer_line(layer: LayerReport, width: int) -> str:
    shape = f"{layer.shape[0]}x{layer.shape[1]}"
    noise = "-" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}"
    projected = "-"
    if layer.projected_error is not None:
        projected = f"{layer.projected_error:.5f}/{layer.projected_nearest:.5f}"
    notes = [*layer.notes, *(["given back as nearest"] if layer.given_back else [])]
    return (
        f"{layer.name:<{width}}  {shape:>13}  {layer.format:<14} {_megabytes(layer.bytes_after):>8} "
        f"{layer.error:>9.5f} {noise:>6} {projected:>17}  {'; '.join(notes)}"
    ).rstrip()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _shortened(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
