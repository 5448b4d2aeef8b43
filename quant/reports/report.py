"""The report of a run: one value that the command line, the nodes, the page and JSON all show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..layer.layer_errors import PAIRS, ErrorPair, LayerErrors
from ..notices import Notice, render
from ..planning.size_curve import SizeCurve
from ..text import counted, dimensions, grouped, kept_lines, markdown_table, megabytes, table
from .entries import KeptReport, LayerReport, Totals

TITLES = {
    "weight": "weight error",
    "output_w8a16": "output error (W8A16)",
    "output_w8a8": "output error (W8A8)",
    "projected": "projected error",
}
"""Titles in text of the pairs of `LayerErrors`."""


@dataclass(kw_only=True)
class Report:
    """The whole run."""

    profile: str
    certain: bool
    """Whether the model was recognised."""
    recipe: dict[str, Any]
    versions: dict[str, str]
    layers: list[LayerReport] = field(default_factory=list)
    kept: list[KeptReport] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)
    """Tensors that were dropped, with the reason."""
    notes: list[Notice] = field(default_factory=list)
    seconds: float = 0.0
    precision: SizeCurve | None = None
    """Error at every size, if formats were chosen by measurement."""

    @property
    def totals(self) -> Totals:
        entries: list[LayerReport | KeptReport] = [*self.layers, *self.kept]
        kept_layers = sum(kept.is_layer for kept in self.kept)
        return Totals(
            layers=len(self.layers),
            kept_layers=kept_layers,
            other_tensors=len(self.kept) - kept_layers,
            bytes_before=sum(entry.bytes_before for entry in entries),
            bytes_after=sum(entry.bytes_after for entry in entries),
            fell_back=sum(layer.errors.fell_back for layer in self.layers),
            **{name: self._mean(name) for name in PAIRS},
        )

    def _mean(self, name: str) -> ErrorPair | None:
        pairs = _pairs(self.layers, name)
        if not pairs:
            return None
        return ErrorPair(root_mean_square(p.error for p in pairs), root_mean_square(p.nearest for p in pairs))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without NaN and infinity; `from_dict` computes the totals again."""
        data: dict[str, Any] = nullified(asdict(self) | {"totals": asdict(self.totals)})
        return data

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Read what `to_dict` wrote; KeyError, TypeError or ValueError for anything else."""
        values = {key: value for key, value in data.items() if key != "totals"}
        values["layers"] = [LayerReport.from_dict(layer) for layer in data["layers"]]
        values["kept"] = [KeptReport.from_dict(kept) for kept in data["kept"]]
        values["notes"] = [Notice.from_dict(note) for note in data["notes"]]
        values["precision"] = SizeCurve.from_dict(data["precision"]) if data["precision"] else None
        return cls(**values)

    def table(self) -> str:
        """The report as text: a line for each layer, what was kept and why, warnings, and the totals."""
        rows, right = self._rows()
        curve = [] if self.precision is None else [*self.precision.lines(), ""]
        return "\n".join([*table(rows, right), "", *curve, self.short()])

    def markdown(self) -> str:
        """The report as Markdown that reads as plain text too: the totals first, then the layers as a table."""
        rows, right = self._rows()
        curve = [] if self.precision is None else ["", "```text", *self.precision.lines(), "```"]
        rest = [f"- {line}" for line in (*self._kept_lines(), *self.warnings())]
        return "\n".join([f"**{self.summary()}**", "", *markdown_table(rows, right), *curve, "", *rest]).rstrip()

    def short(self) -> str:
        """Render kept tensors with reasons, warnings, and the totals."""
        return "\n".join([*self._kept_lines(), *self.warnings(), self.summary()])

    def warnings(self) -> list[str]:
        """Render the layers' warnings, each with the layers that it concerns, and the notes of the run."""
        warnings = grouped(
            (render(note), layer.name) for layer in self.layers for note in layer.notes if note.level == "warning"
        )
        return [*warnings, *map(render, self.notes)]

    def summary(self) -> str:
        """The totals in one line."""
        totals = self.totals
        ratio = totals.bytes_after / totals.bytes_before if totals.bytes_before else 1.0
        output, weight = totals.output_w8a8, totals.weight
        parts = [
            f"{counted(totals.layers, 'layer')} quantized",
            f"{counted(totals.kept_layers, 'layer')} and {counted(totals.other_tensors, 'other tensor')} kept",
            f"{megabytes(totals.bytes_before)} -> {megabytes(totals.bytes_after)} MB ({ratio:.0%})",
            *([f"{TITLES['output_w8a8']} {output.error:.4f} (nearest {output.nearest:.4f})"] if output else []),
            *([f"{TITLES['weight']} {weight.error:.4f}"] if weight else []),
            *([f"{totals.fell_back} fell back to nearest"] if totals.fell_back else []),
            f"{self.seconds:.1f} s",
        ]
        return f"{self.profile}: {', '.join(parts)}"

    def _rows(self) -> tuple[list[tuple[str, ...]], frozenset[int]]:
        """Titles and a row for each layer; and the columns of numbers."""
        columns = self._columns()
        head = ("layer", "shape", "format", "MB", *(column.title for column in columns), "notes")
        return [head, *(_layer_row(layer, columns) for layer in self.layers)], frozenset(range(3, len(head) - 1))

    def _kept_lines(self) -> list[str]:
        """A line for each reason why tensors were kept or removed, the largest tensors first."""
        largest = sorted(self.kept, key=lambda entry: -entry.bytes_after)
        return kept_lines(((entry.name, entry.reason, entry.source) for entry in largest), self.removed)

    def _columns(self) -> list[_Column]:
        """Columns of the table for `LayerErrors`: nearest's error only if rounding made a difference somewhere."""
        columns: list[_Column] = []
        for name, title in TITLES.items():
            pairs = _pairs(self.layers, name)
            if pairs:
                columns.append(_Column(title=title, pair=name, figure="error"))
            if any(pair.error != pair.nearest for pair in pairs):
                columns.append(_Column(title="nearest", pair=name, figure="nearest"))
            if name == "weight" and pairs:
                columns.append(_Column(title="dB", pair=name, figure="decibels", digits=1))
        return columns


@dataclass(frozen=True, kw_only=True)
class _Column:
    title: str
    pair: str
    figure: str
    digits: int = 5

    def cell(self, errors: LayerErrors) -> str:
        pair = errors.pairs.get(self.pair)
        value = None if pair is None else getattr(pair, self.figure)
        return "-" if value is None else f"{value:.{self.digits}f}"


def _layer_row(layer: LayerReport, columns: Sequence[_Column]) -> tuple[str, ...]:
    notes = "; ".join(map(render, layer.notes))
    cells = (column.cell(layer.errors) for column in columns)
    return layer.name, dimensions(layer.shape), layer.format, megabytes(layer.bytes_after), *cells, notes


def _pairs(layers: Iterable[LayerReport], name: str) -> list[ErrorPair]:
    return [pairs[name] for layer in layers if name in (pairs := layer.errors.pairs)]


def nullified(value: Any) -> Any:
    """JSON data with null for every number that is not finite; JSON has no other word for them."""
    if isinstance(value, dict):
        return {key: nullified(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [nullified(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def root_mean_square(values: Iterable[float]) -> float:
    squares = [value**2 for value in values]
    return math.sqrt(math.fsum(squares) / len(squares))


def merge_reports(reports: Mapping[str, Report]) -> Report:
    """The reports of a model's parts as one, names prefixed with the part's; a single report as it is."""
    first, *others = reports.values()
    if not others:
        return first
    merged = Report(
        profile=" + ".join(report.profile for report in reports.values()),
        certain=all(report.certain for report in reports.values()),
        recipe=first.recipe,
        versions=first.versions,
        seconds=math.fsum(report.seconds for report in reports.values()),
    )
    for part, report in reports.items():
        merged.layers += [replace(layer, name=f"{part}.{layer.name}") for layer in report.layers]
        merged.kept += [replace(kept, name=f"{part}.{kept.name}") for kept in report.kept]
        merged.removed |= {f"{part}.{name}": reason for name, reason in report.removed.items()}
        merged.notes += [note for note in report.notes if note not in merged.notes]
    return merged
