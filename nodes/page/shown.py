"""What a node shows when it has run: kept in the history, and sent again when the node is served from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...quant import Report
from .columns import columns

UI_KEY = "calibrated_rounding"

FROM_DISK = "Taken from the results kept on disk; nothing was rounded."


def shown(
    report: Report, kept: bool = False, said: Sequence[str] = (), file: str = "", note: str = ""
) -> dict[str, Any]:
    """The totals as text, and the whole report for the pack's front end.

    kept: nothing was rounded for it. said: more lines, which the node shows, too. file: the path of what was written.
    note: a line that the node has shown before.
    """
    lines = [report.summary(), *([FROM_DISK] if kept else []), *([file] if file else []), *said]
    data = packed(report) | {"from_disk": kept, "said": list(said), "file": file}
    return {UI_KEY: [data], "text": ["\n".join(lines) + note]}


def packed(report: Report) -> dict[str, Any]:
    """The report as JSON has it, its two long lists as `columns`."""
    data = report.to_dict()
    return data | {"layers": columns(data["layers"]), "kept": columns(data["kept"])}
