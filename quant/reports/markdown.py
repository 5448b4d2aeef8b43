"""A report as Markdown that reads as plain text too, for previews in the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..notices import render
from ..text import dimensions, markdown_table, megabytes, percent
from .entries import LayerReport
from .report import Report
from .wording import TITLES

LEGEND = "In brackets: the error of nearest rounding with the same scales."


def to_markdown(report: Report) -> str:
    """Render a report: the totals, a table of the layers, the kept tensors with their reasons, warnings."""
    names = [name for name in TITLES if any(name in layer.errors.pairs for layer in report.layers)]
    noted, effects = any(layer.notes for layer in report.layers), report.share_effects()
    titles = [*(TITLES[name] for name in names), *(["effect on the picture"] if effects else [])]
    head = ("layer", "shape", "format", "MB", *titles, *(["notes"] if noted else []))
    rows = [tuple(_row(layer, names, effects, noted)) for layer in report.layers]
    lines = markdown_table([head, *rows], frozenset(range(3, 4 + len(titles))))
    legend = ["", LEGEND] if any("(" in cell for row in rows for cell in row[4 : 4 + len(names)]) else []
    curve = [] if report.precision is None else ["", "```text", *report.precision.lines(), "```"]
    *rest, summary = report.short().split("\n")
    return "\n".join([f"**{summary}**", "", *lines, *legend, *curve, "", *(f"- {line}" for line in rest)]).rstrip()


def _row(layer: LayerReport, names: list[str], effects: Mapping[str, float], noted: bool) -> Iterator[str]:
    yield from (layer.name, dimensions(layer.shape), layer.format, megabytes(layer.bytes_after))
    for name in names:
        pair = layer.errors.pairs.get(name)
        if pair is None:
            yield "-"
        elif pair.error == pair.nearest:
            yield percent(pair.error)
        else:
            yield f"{percent(pair.error)} ({percent(pair.nearest)})"
    if effects:
        yield percent(effects[layer.name], 1) if layer.name in effects else "-"
    if noted:
        yield "; ".join(map(render, layer.notes))
