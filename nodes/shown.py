"""What a node shows when it has run: kept in the history, and sent again when the node is served from a cache."""

from __future__ import annotations

from typing import Any

from ..quant import Report
from .columns import columns

UI_KEY = "calibrated_rounding"


def shown(report: Report, kept: bool = False, unused: str = "") -> dict[str, Any]:
    """The totals as text, and the whole report for the pack's front end. kept: nothing was rounded for it."""
    note = "\nTaken from the results kept on disk; nothing was rounded." if kept else ""
    return {UI_KEY: [packed(report) | {"from_disk": kept}], "text": [report.summary() + note + unused]}


def packed(report: Report) -> dict[str, Any]:
    """The report as JSON has it, its two long lists as `columns`."""
    data = report.to_dict()
    return data | {"layers": columns(data["layers"]), "kept": columns(data["kept"])}
