"""The result that a node shows after its run: kept in the history, and sent again if the node is served from a cache.

Each output has English text, which any front end shows, and the same as data, which the pack's own front end words in
the user's language.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...quant import Report
from ...quant.calibration.calibration import Calibration
from ...quant.notices import Notice, notice, render
from .columns import columns

UI_KEY = "calibrated_rounding"


def show_report(
    report: Report, notices: Sequence[Notice] = (), *, from_disk: bool = False, file: str = ""
) -> dict[str, Any]:
    """The totals as text, and the whole report as data.

    Args:
        notices: beside the report's own.
        from_disk: nothing was rounded for it.
        file: path of the file that was written.
    """
    shown = [*([notice("from_disk")] if from_disk else []), *notices, *report.notes]
    lines = [report.summary(), *([file] if file else []), *map(render, shown)]
    data = pack_report(report) | {"from_disk": from_disk, "notices": _as_data(notices), "file": file}
    return {UI_KEY: [data], "text": ["\n".join(lines)]}


def show_calibration(calibration: Calibration) -> dict[str, Any]:
    """What is in a calibration."""
    facts, notices = calibration.facts(), calibration.warnings()
    data = {"text": "\n".join(facts), "notices": _as_data(notices)}
    return {UI_KEY: [data], "text": ["\n".join([*facts, *map(render, notices)])]}


def pack_report(report: Report) -> dict[str, Any]:
    """The report as JSON has it, its two long lists as `columns`."""
    data = report.to_dict()
    return data | {"layers": columns(data["layers"]), "kept": columns(data["kept"])}


def _as_data(notices: Sequence[Notice]) -> list[dict[str, Any]]:
    return [entry.to_dict() for entry in notices]
