"""Time of one file in 1, 2 and 4 processes on the CPU, and of the parts that do not get shorter.

    python benchmarks/scaling.py [--json FILE] [--runs N] [--layers N]

Two runs are measured in the format int8_row: nearest, of the 2 GB file of benchmarks/cost.py; and calibrated, of layers
of 2,048 x 2,048 with 1,024 recorded rows. Each process computes on one thread. Times are rank 0's, medians of runs
taken in turn:

start-up: Python, torch, and the ranks finding each other, until all are connected
layers: reading, quantizing, writing, hashing the source; until the last rank has finished
hash: the part of `layers` in which rank 0 hashes the source while others compute; a process alone hashes what it reads
serial: all of a run but its layers: plan, allocation, verification, flush and rename; without start-up
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from _table import Row, arguments, emit
from _weights import save, save_large
from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.calibration.collector import Collector
from calibrated_rounding.quant.calibration.statistics import fingerprint

COUNTS = (1, 2, 4)
WIDTH, ROWS = 2048, 1024
RANK = Path(__file__).with_name("_rank.py")
PARTS = ("allocation", "verification", "flush", "flush and rename")
Times = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file and how it is quantized."""

    name: str
    source: Path
    recipe: Recipe
    calibration: Path | None = None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts (default 3)")
    parser.add_argument("--layers", type=int, default=16, help="of the calibrated file (default 16)")
    parser.add_argument("--small", action="store_true", help="the calibrated file alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for case in _make_cases(Path(folder), options) for row in _measure(case, options.runs)]
    cores = Row(case="machine", metric="cores", value=float(os.cpu_count() or 1), unit="cores")
    emit([cores, *rows], options.json, "One file in several processes")


def _make_cases(folder: Path, options: Namespace) -> Sequence[Case]:
    calibrated = _make_calibrated(folder, options.layers)
    if options.small:
        return [calibrated]
    recipe = Recipe(format="int8_row", profile="generic")
    return [Case(name="2 GB, nearest", source=save_large(folder / "large.safetensors"), recipe=recipe), calibrated]


def _make_calibrated(folder: Path, layers: int) -> Case:
    generator, collector = torch.Generator().manual_seed(0), Collector(rows=ROWS)
    weights = {f"blocks.{i}": torch.randn(WIDTH, WIDTH, generator=generator).bfloat16() for i in range(layers)}
    mixing = torch.randn(256, WIDTH, generator=generator)
    for name in weights:
        collector.add(name, (torch.randn(ROWS, 256, generator=generator) @ mixing).bfloat16())
    recorded = folder / "calibration.safetensors"
    collector.finish({name: fingerprint(weight) for name, weight in weights.items()}).save(recorded)
    return Case(
        name="calibrated",
        source=save({f"{name}.weight": weight for name, weight in weights.items()}, folder / "layers.safetensors"),
        recipe=Recipe(format="int8_row", rounding="calibrated", profile="generic"),
        calibration=recorded,
    )


def _measure(case: Case, runs: int) -> list[Row]:
    times: dict[int, list[Times]] = {count: [] for count in COUNTS}
    for _ in range(runs):
        for count in COUNTS:
            times[count].append(_run(case, count))
    medians = {
        count: {part: statistics.median(one[part] for one in measured) for part in measured[0]}
        for count, measured in times.items()
    }
    return [row for count in COUNTS for row in _make_rows(f"{case.name}, {count}", medians[count], medians[1])]


def _make_rows(case: str, times: Times, alone: Times) -> list[Row]:
    serial = times["run"] - times["layers"]
    seconds = {"start-up": times["start-up"], "run": times["run"], "layers": times["layers"], "serial": serial}
    seconds |= {part: times[part] for part in ("hash", *PARTS)}
    return [
        *(Row(case=case, metric=metric, value=value, unit="s") for metric, value in seconds.items()),
        Row(case=case, metric="serial share", value=serial / times["run"], unit="ratio"),
        Row(case=case, metric="times as fast as one process", value=alone["run"] / times["run"], unit="ratio"),
    ]


def _run(case: Case, count: int) -> Times:
    """Run ranks to their end; gives rank 0's times."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    recipe, parts = (case.source.with_name(name) for name in ("recipe.json", "parts.json"))
    recipe.write_text(json.dumps(case.recipe.to_dict()), encoding="utf-8")
    target = case.source.with_name("quantized.safetensors")
    command = [sys.executable, RANK, case.source, target, recipe, case.calibration or "", parts]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([str(part) for part in command], env=os.environ | place | {"RANK": str(rank)})
        for rank in range(count)
    ]
    if any([rank.wait() for rank in ranks]):
        raise SystemExit(f"A rank of {count} failed.")
    target.unlink()
    times: Times = json.loads(parts.read_text(encoding="utf-8"))
    return times


if __name__ == "__main__":
    main()
