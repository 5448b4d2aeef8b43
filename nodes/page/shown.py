"""The result that a node shows after its run: kept in the history, and sent again if the node is served from a cache.

Each output has English text, which any front end shows, and the same as data, which the pack's own front end words in
the user's language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...quant import Report
from ...quant.calibration.calibration import Calibration
from ...quant.notices import Notice, notice, render
from ...quant.text import megabytes
from .columns import columns
from .saved import SavedFile

UI_KEY = "calibrated_rounding"


def show_report(
    report: Report, notices: Sequence[Notice] = (), *, from_disk: bool = False, saved: SavedFile | None = None
) -> dict[str, Any]:
    """The totals as text, and the whole report as data.

    Args:
        notices: beside the report's own.
        from_disk: nothing was rounded for it.
        saved: the file that was written.
    """
    shown = [*([notice("from_disk")] if from_disk else []), *notices, *report.notes]
    lines = [report.summary(), *([saved.path] if saved else []), *map(render, shown)]
    data = pack_report(report) | {"from_disk": from_disk, "notices": _as_data(notices)}
    data["saved"] = None if saved is None else asdict(saved)
    return {UI_KEY: [data], "text": ["\n".join(lines)]}


def show_files(files: Sequence[SavedFile], notices: Sequence[Notice] = (), text: str = "") -> dict[str, Any]:
    """The files that were written, as English text and as data for the pack's own front end.

    Args:
        files: In the order of writing.
        notices: What to know before they are loaded.
        text: More lines, shown below.
    """
    data = {
        "files": [asdict(file) for file in files],
        "notices": _as_data(notices),
        "more": text,
    }
    lines = [f"{file.path} ({megabytes(file.nbytes)} MB)" for file in files]
    return {UI_KEY: [data], "text": ["\n".join([*lines, *map(render, notices), *([text] if text else [])])]}


def show_calibration(calibration: Calibration) -> dict[str, Any]:
    """What is in a calibration."""
    facts, notices = calibration.facts(), calibration.warnings()
    data = {"text": "\n".join(facts), "notices": _as_data(notices)}
    return {UI_KEY: [data], "text": ["\n".join([*facts, *map(render, notices)])]}


def pack_report(report: Report) -> dict[str, Any]:
    """The report as JSON has it, with the model's title, its two long lists as `columns`."""
    data = report.to_dict()
    return data | {"title": report.title, "layers": columns(data["layers"]), "kept": columns(data["kept"])}


def _as_data(notices: Sequence[Notice]) -> list[dict[str, Any]]:
    return [entry.to_dict() for entry in notices]
