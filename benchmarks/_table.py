"""What every benchmark prints and writes: rows of figures, as a readable table and as JSON."""

from __future__ import annotations

import json
import platform
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from calibrated_rounding.quant.version import versions

HEAD = ("case", "metric", "value", "unit", "target", "reached")


@dataclass(frozen=True)
class Row:
    """One figure. value: None where it could not be measured. target, reached: None where no target is set."""

    case: str
    metric: str
    value: float | None
    unit: str
    target: float | None = None
    reached: bool | None = None


def arguments(doc: str | None) -> ArgumentParser:
    """The command line that all benchmarks share; ``doc`` is the script's own documentation."""
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
    """Print the rows under a title and, if asked, write {"device", "versions", "rows"} as JSON."""
    name = device_name(device)
    used = versions() | dict(extra_versions or {})
    print(f"{title}\n{name}; " + ", ".join(f"{package} {number}" for package, number in used.items()) + "\n")
    print(table(rows))
    if json_path is not None:
        document = {"device": name, "versions": used, "rows": [asdict(row) for row in rows]}
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """The rows in columns, numbers to the right; target and reached only where some row has one."""
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


def device_name(device: str) -> str:
    """The processor or the accelerator in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
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
