"""The report of a run: one value that the command line, the nodes, the page and JSON all show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..layer.layer_errors import PAIRS, ErrorPair, LayerErrors
from ..notices import Notice, render
from ..planning.profiles import get_profile
from ..planning.size_curve import SizeCurve
from ..text import dimensions, grouped, kept_lines, megabytes, percent, table
from .entries import KeptReport, LayerReport, Totals
from .wording import TITLES, count_layers, count_quantized, describe_errors

JOINT = " + "
"""Between the profiles of several models in one report."""


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
    def title(self) -> str:
        """Name of the model for readers; of several, each."""
        return JOINT.join(get_profile(name).title for name in self.profile.split(JOINT))

    @property
    def totals(self) -> Totals:
        entries: list[LayerReport | KeptReport] = [*self.layers, *self.kept]
        kept_layers = [kept.bytes_after for kept in self.kept if kept.is_layer]
        others = [kept.bytes_after for kept in self.kept if not kept.is_layer]
        return Totals(
            layers=len(self.layers),
            kept_layers=len(kept_layers),
            kept_bytes=sum(kept_layers),
            other_tensors=len(others),
            other_bytes=sum(others),
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
        columns, effects = self._columns(), self.share_effects()
        titles = [*(column.title for column in columns), *(["effect on the picture"] if effects else [])]
        head = ("layer", "shape", "format", "MB", *titles, "notes")
        rows = [head, *(_layer_row(layer, columns, effects) for layer in self.layers)]
        curve = [] if self.precision is None else [*self.precision.lines(), ""]
        return "\n".join([*table(rows, right=frozenset(range(3, len(head) - 1))), "", *curve, self.short()])

    def share_effects(self) -> dict[str, float]:
        """Each layer's share of the summed `LayerReport.effect`, by name; empty if no sensitivity was measured."""
        effects = {layer.name: layer.effect for layer in self.layers if layer.effect is not None}
        total = math.fsum(effects.values())
        return {name: effect / total for name, effect in effects.items()} if total else {}

    def short(self) -> str:
        """Render kept tensors with reasons, warnings, and the totals."""
        largest = sorted(self.kept, key=lambda entry: -entry.bytes_after)
        kept = kept_lines(((entry.name, entry.reason, entry.source) for entry in largest), self.removed)
        return "\n".join([*kept, *self.warnings(), self.summary()])

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
        parts = [
            self.count_layers(),
            f"{megabytes(totals.bytes_before)} -> {megabytes(totals.bytes_after)} MB ({ratio:.0%})",
            *describe_errors(totals.pairs),
            *([f"{totals.fell_back} fell back to nearest"] if totals.fell_back else []),
            f"{self.seconds:.1f} s",
        ]
        return f"{self.profile}: {', '.join(parts)}"

    def count_layers(self) -> str:
        """``19 layers quantized, 8 kept (2.70 MB), norms and biases 0.10 MB``."""
        totals = self.totals
        quantized = count_quantized(totals.layers)
        return count_layers(quantized, totals.kept_layers, totals.kept_bytes, totals.other_bytes)

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
                columns.append(_Column(title="dB", pair=name, figure="decibels"))
        return columns


@dataclass(frozen=True, kw_only=True)
class _Column:
    title: str
    pair: str
    figure: str

    def cell(self, errors: LayerErrors) -> str:
        pair = errors.pairs.get(self.pair)
        value = None if pair is None else getattr(pair, self.figure)
        if value is None:
            return "-"
        return f"{value:.1f}" if self.figure == "decibels" else percent(value, 3)


def _layer_row(layer: LayerReport, columns: Sequence[_Column], effects: Mapping[str, float]) -> tuple[str, ...]:
    notes = "; ".join(map(render, layer.notes))
    cells = [column.cell(layer.errors) for column in columns]
    if effects:
        cells.append(percent(effects[layer.name], 1) if layer.name in effects else "-")
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
        profile=JOINT.join(report.profile for report in reports.values()),
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
    merged.notes[:] = [note for note in merged.notes if not _concerns_one_part(note, reports.values())]
    return merged


def _concerns_one_part(note: Notice, reports: Iterable[Report]) -> bool:
    """Whether a pattern is found in another part, so that it has an effect."""
    return note.kind == "pattern_unmatched" and any(note not in report.notes for report in reports)
