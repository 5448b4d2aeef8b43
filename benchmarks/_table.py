"""The output of every benchmark: rows of figures, as a readable table and as JSON."""

from __future__ import annotations

import json
import platform
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from calibrated_rounding.quant.text import counted
from calibrated_rounding.quant.version import versions

HEAD = ("case", "metric", "value", "unit", "target", "reached")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure."""

    case: str
    metric: str
    value: float | None
    """None if it could not be measured."""
    unit: str
    target: float | None = None
    """None if no target is set."""
    reached: bool | None = None


def arguments(doc: str | None) -> ArgumentParser:
    """Make the command line that all benchmarks share; ``doc`` is the script's own documentation."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser


def emit(
    rows: Sequence[Row],
    json_path: Path | None,
    title: str,
    *,
    device: str = "cpu",
    extra_versions: Mapping[str, str] | None = None,
) -> None:
    """Print the rows under a title and, with ``json_path``, write {"device", "versions", "rows"}."""
    name = describe_device(device)
    packages = versions() | dict(extra_versions or {})
    print(f"{title}\n{name}; " + ", ".join(f"{package} {number}" for package, number in packages.items()) + "\n")
    print(format_table(rows))
    if json_path is not None:
        document = {"device": name, "versions": packages, "rows": [asdict(row) for row in rows]}
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def format_table(rows: Sequence[Row]) -> str:
    """Format rows in columns, numbers to the right; target and reached only if some row has a target."""
    shown = HEAD if any(row.target is not None for row in rows) else HEAD[:4]
    cells = [shown, *(tuple(_cell(getattr(row, column)) for column in shown) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column in ("value", "target") else text.ljust(width)
            for column, text, width in zip(shown, line, widths, strict=True)
        ).rstrip()
        for line in cells
    )


def describe_device(device: str) -> str:
    """Name the processor or the accelerator."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_describe_processor()}, {counted(torch.get_num_threads(), 'thread')}"


def _describe_processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
