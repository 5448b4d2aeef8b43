"""Time, memory and errors of the engine against convert-to-quant (PyPI), on the same weights and in one run.

    python benchmarks/convert_to_quant.py [--json FILE] [--convert-to-quant PATH] [--weights FILE] [--runs N]
        [--parts NAME,NAME]

Both run as whole processes from their command lines, in turn, and what was written is on the disk before the next one
starts. The table has the median of the runs: wall time with start-up, also of the fastest and the slowest run, and peak
resident memory. Errors are computed from the files that both wrote, with the exact singular
directions of the float weights. Both use their defaults, but the number k of directions is convert-to-quant's default
for both (narrow trained layers: a fifth of the width, at least 64). Its values are empty without it (``ctq`` on the
PATH, or --convert-to-quant).

The weights are a synthetic layer of 1024 x 1024, a synthetic file of 2 GB for time and memory, layers of the shipped
digits model and, with --weights, layers of any trained checkpoint. Trained layers run once, for errors.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import _convert_to_quant as converter
from _errors import Errors, Exact
from _process import Usage, race
from _table import Row, arguments, emit
from _weights import load_trained, make_synthetic, save, save_large
from torch import Tensor

OURS = (sys.executable, "-m", "calibrated_rounding.quant", "--quiet", "--overwrite", "--device", "cpu")
TOP_P, MAX_K = 0.2, 1280
DIGITS = Path(__file__).parents[1] / "examples" / "models" / "diffusion_models" / "digits_wan.safetensors"

THEIRS, LOW_MEMORY = converter.PACKAGE, f"{converter.PACKAGE}, low memory"


@dataclass(frozen=True)
class Kind:
    """A format to compare."""

    format: str
    svd: float | None = None
    """Target of svd's projected error, relative to nearest's."""


KINDS: Mapping[str, Kind] = {
    "FP8": Kind("float8_e4m3fn", 0.60),
    "INT8 row": Kind("int8_row", 0.70),
    "INT8 row, rotated": Kind("int8_convrot"),
}

NEAREST_TIME, SVD_TIME, LARGE_TIME, LARGE_MEMORY = 1.0, 0.25, 0.25, 0.35
"""Targets relative to convert-to-quant. Small files are mostly start-up."""

LARGE_MEGABYTES = 500.0
"""Target for the 2 GB file."""

PARTS = LAYERS, LARGE = "layers", "large"


@dataclass(frozen=True)
class Contest:
    """Runs both converters on files."""

    folder: Path
    """Folder for the files."""
    executable: str | None
    """convert-to-quant's, None if it is not installed."""
    runs: int

    def measure(
        self, source: Path, kind: Kind, ours: Sequence[str], theirs: Mapping[str, Sequence[str]]
    ) -> dict[str, Usage]:
        """Measure time and memory of "ours" and of each of convert-to-quant's ways; failures are missing.

        Args:
            source: The float file.
            kind: The format.
            ours: Our further options.
            theirs: Name of each way -> convert-to-quant's further options.
        """
        files = ["-i", str(source), "-o", str(self.target("ours")), "--format", kind.format]
        commands = {"ours": [*OURS, *files, *ours]}
        if self.executable is not None:
            for name, options in theirs.items():
                target = self.target(name)
                commands[name] = converter.build_command(self.executable, source, target, kind.format, options)
        for name in commands:
            self.target(name).unlink(missing_ok=True)
        usages = race(commands, self.runs)
        # convert-to-quant may end without an error and without a file.
        return {name: usage for name, usage in usages.items() if self.target(name).exists()}

    def target(self, name: str) -> Path:
        return self.folder / f"{name.replace(', ', '_').replace(' ', '_')}.safetensors"


def main() -> None:
    parser = arguments(__doc__)
    converter.add_argument(parser)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="also layers of this trained checkpoint")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each command (default 3)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)} (default: both)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder), options.convert_to_quant, options.runs)
        rows = list[Row]()
        if LAYERS in options.parts:
            rows += measure_layers(contest, "1024 x 1024", {"layer.weight": make_synthetic((1024, 1024))}, min_k=256)
            for path in filter(None, (DIGITS, options.weights)):
                rows += measure_layers(replace(contest, runs=1), f"trained, {path.stem}", load_trained(path), min_k=64)
        if LARGE in options.parts:
            rows += measure_large(contest)
    versions = converter.read_version(options.convert_to_quant)
    emit(rows, options.json, f"Against {converter.PACKAGE}", extra_versions=versions)


def measure_layers(contest: Contest, title: str, weights: Mapping[str, Tensor], min_k: int) -> list[Row]:
    """Measure time, memory and errors of nearest and of svd rounding in every format."""
    print(title, file=sys.stderr)
    source = save(weights, contest.folder / "source.safetensors")
    exact = Exact(weights, TOP_P, min_k)
    directions = ("--top-p", str(TOP_P), "--min-k", str(min_k), "--max-k", str(MAX_K))
    rows = []
    for name, kind in KINDS.items():
        case = f"{title}, {name}"
        nearest = contest.measure(source, kind, ["--simple"], {THEIRS: converter.NEAREST})
        nearest_errors = {who: exact.errors(contest.target(who)) for who in nearest}
        rows += cost_rows(f"{case}, nearest", nearest, NEAREST_TIME)
        rows += error_rows(f"{case}, nearest", nearest_errors)
        svd = contest.measure(source, kind, ["--rounding", "svd", *directions], {THEIRS: directions})
        svd_errors = {who: exact.errors(contest.target(who)) for who in svd}
        rows += cost_rows(f"{case}, svd", svd, SVD_TIME)
        rows += error_rows(f"{case}, svd", svd_errors)
        for who, target in (("ours", kind.svd), (THEIRS, None)):
            both = who in nearest_errors and who in svd_errors
            gain = svd_errors[who].projected / nearest_errors[who].projected if both else None
            rows.append(at_most(f"{case}, svd", f"projected error / nearest, {who}", gain, "ratio", target))
    return rows


def measure_large(contest: Contest) -> list[Row]:
    """Measure time and memory of nearest rounding on the 2 GB file, also of convert-to-quant's mode for low memory."""
    source = save_large(contest.folder / "large.safetensors")
    rows = []
    for name, kind in KINDS.items():
        case = f"2 GB, {name}, nearest"
        theirs = {THEIRS: converter.NEAREST, LOW_MEMORY: [*converter.NEAREST, "--low-memory"]}
        usages = contest.measure(source, kind, ["--simple"], theirs)
        rows += cost_rows(case, usages, LARGE_TIME, LARGE_MEMORY, LARGE_MEGABYTES)
        low_memory = usages.get(LOW_MEMORY)
        rows += [
            Row(case=case, metric=f"time, {LOW_MEMORY}", value=low_memory and low_memory.seconds, unit="s"),
            Row(case=case, metric=f"peak memory, {LOW_MEMORY}", value=low_memory and low_memory.megabytes, unit="MB"),
        ]
    return rows


def cost_rows(
    case: str,
    usages: Mapping[str, Usage],
    time_ratio: float,
    memory_ratio: float | None = None,
    memory: float | None = None,
) -> list[Row]:
    """List time and memory of both converters, and their ratios with the targets."""
    ours, theirs = usages.get("ours"), usages.get(THEIRS)
    both = ours is not None and theirs is not None
    faster = ours.seconds / theirs.seconds if both else None
    smaller = ours.megabytes / theirs.megabytes if both else None
    return [
        *time_rows(case, "ours", ours),
        *time_rows(case, THEIRS, theirs),
        at_most(case, f"time, ours / {THEIRS}", faster, "ratio", time_ratio),
        at_most(case, "peak memory, ours", ours and ours.megabytes, "MB", memory),
        Row(case=case, metric=f"peak memory, {THEIRS}", value=theirs and theirs.megabytes, unit="MB"),
        at_most(case, f"peak memory, ours / {THEIRS}", smaller, "ratio", memory_ratio),
    ]


def time_rows(case: str, who: str, usage: Usage | None) -> list[Row]:
    """List the median, the fastest and the slowest of the runs."""
    metric = f"time, {who}"
    return [
        Row(case=case, metric=metric, value=usage and usage.seconds, unit="s"),
        Row(case=case, metric=f"{metric}, fastest run", value=usage and usage.fastest, unit="s"),
        Row(case=case, metric=f"{metric}, slowest run", value=usage and usage.slowest, unit="s"),
    ]


def error_rows(case: str, errors: Mapping[str, Errors]) -> list[Row]:
    rows = []
    for who in ("ours", THEIRS):
        error = errors.get(who)
        rows.append(Row(case=case, metric=f"weight error, {who}", value=error and error.weight, unit="relative"))
        rows.append(Row(case=case, metric=f"projected error, {who}", value=error and error.projected, unit="relative"))
    return rows


def at_most(case: str, metric: str, value: float | None, unit: str, target: float | None) -> Row:
    """A row whose target is an upper limit."""
    reached = None if value is None or target is None else value <= target
    return Row(case=case, metric=metric, value=value, unit=unit, target=target, reached=reached)


if __name__ == "__main__":
    main()
