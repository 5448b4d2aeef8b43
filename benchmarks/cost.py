"""Time of calibrated rounding and memory of a calibration, as ratios within one run.

    python benchmarks/cost.py [--json FILE] [--runs N] [--parts NAME,NAME...]

One wide layer is timed in units of a Cholesky factorization of its Hessian, the least work that the method needs, and
in 6 and 4 bits also in units of int8_row; the shipped model in units of nearest rounding, without start-up. Rounding a
2 GB file to nearest is timed in units of the least work with as many bytes: copying them with `shutil` and taking
SHA-256 of the source. All times are medians of runs taken in turn, with torch's number of threads (OMP_NUM_THREADS).
The memory is the peak of a recording relative to its budget, for the layers of a model like Flux.1 with far more rows
than fit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from _networks import load_digits
from _table import Row, arguments, emit
from _weights import save_large
from calibrated_rounding.quant import Recipe, quantize_file, quantize_state_dict
from calibrated_rounding.quant.calibration.collector import Collector
from calibrated_rounding.quant.calibration.reservoir import Reservoir
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.layer.quantize import quantize_layer
from calibrated_rounding.quant.layer.task import LayerTask

WIDE = (3072, 12288)
KINDS = ("float8_e4m3fn", "int8_row", "int8_convrot")
FEW_BITS = ("w6a8", "w4a8", "nvfp4")
ROWS = 2048
IN_CHOLESKYS, IN_INT8, IN_NEARESTS, IN_COPIES = 8.0, 3.0, 5.0, 2.5
BUDGET = 64 << 20
INPUT_WIDTHS = {"in": 3072, "out": 12288}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts (default 3)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)} (default: all)")
    options = parser.parse_args()
    rows = [row for name in options.parts.split(",") for row in PARTS[name](options.runs)]
    emit(rows, options.json, "What calibration costs")


def _measure_wide(runs: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDE, generator=generator).mul_(0.02).to(torch.bfloat16)
    rank = 512
    inputs = torch.randn(ROWS, rank, generator=generator) @ torch.randn(rank, WIDE[1], generator=generator)
    stats = InputStatistics(rows=inputs.to(torch.bfloat16), absmax=float(inputs.abs().max()))
    hessian = (inputs.T @ inputs).div_(ROWS)
    hessian.diagonal().add_(0.01 * float(hessian.diagonal().mean()))

    def calibrate(name: str) -> Callable[[], object]:
        fmt = FORMATS[name]
        group, recipe = 256 if fmt.rotated else None, Recipe(rounding="calibrated")
        task = LayerTask(name="wide", weight=weight, format=fmt, group=group, recipe=recipe, inputs=stats)
        return lambda: quantize_layer(task)

    factor = "factor"
    works = {factor: lambda: torch.linalg.cholesky(hessian)} | {name: calibrate(name) for name in (*KINDS, *FEW_BITS)}
    medians = _race(works, runs)
    case = f"{WIDE[0]} x {WIDE[1]}"
    times = [Row(case=f"{case}, Cholesky of {WIDE[1]} x {WIDE[1]}", metric="time", value=medians.pop(factor), unit="s")]
    for name, seconds in medians.items():
        times.append(Row(case=f"{case}, {name}, calibrated", metric="time", value=seconds, unit="s"))
        target = None if name in FEW_BITS else IN_CHOLESKYS
        times.append(_at_most(f"{case}, {name}, calibrated", "time, in Choleskys", seconds / times[0].value, target))
    for name in FEW_BITS:
        ratio = medians[name] / medians["int8_row"]
        times.append(_at_most(f"{case}, {name}, calibrated", "time, in int8_row's", ratio, IN_INT8))
    return times


def _measure_shipped(runs: int) -> list[Row]:
    network = load_digits()
    tensors = {f"{layer}.weight": weight for layer, weight in network.weights.items()}

    def quantize(name: str, rounding: str) -> Callable[[], object]:
        recipe = Recipe(format=name, rounding=rounding, profile="generic")
        stats = network.calibration if rounding == "calibrated" else None
        # Forced: the layers alone are no model that ComfyUI loads.
        return lambda: quantize_state_dict(tensors, recipe, statistics=stats, force=True)

    rows = []
    for name in KINDS:
        medians = _race({rounding: quantize(name, rounding) for rounding in ("nearest", "calibrated")}, runs)
        rows += [
            Row(case=f"shipped model, {name}, {rounding}", metric="time", value=seconds, unit="s")
            for rounding, seconds in medians.items()
        ]
        ratio = medians["calibrated"] / medians["nearest"]
        rows.append(_at_most(f"shipped model, {name}, calibrated", "time, in nearest's", ratio, IN_NEARESTS))
    return rows


def _measure_large(runs: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = save_large(Path(folder) / "large.safetensors"), Path(folder) / "quantized.safetensors"

        def copy() -> None:
            shutil.copyfile(source, target)
            with open(source, "rb") as file:
                hashlib.file_digest(file, "sha256")

        def quantize(name: str) -> Callable[[], object]:
            return lambda: quantize_file(source, target, Recipe(format=name, profile="generic"), force=True)

        case = "2 GB"
        medians = _race({case: copy} | {name: quantize(name) for name in KINDS}, runs)
    rows = [Row(case=f"{case}, copy and SHA-256", metric="time", value=medians[case], unit="s")]
    for name in KINDS:
        ratio = medians[name] / medians[case]
        rows.append(Row(case=f"{case}, {name}, nearest", metric="time", value=medians[name], unit="s"))
        rows.append(_at_most(f"{case}, {name}, nearest", "time, in copies with SHA-256", ratio, IN_COPIES))
    return rows


def _measure_recording(runs: int) -> list[Row]:
    """The part of recording that is not reading the inputs on their device: drawing, sorting and copying rows."""
    width, inputs = INPUT_WIDTHS["in"], torch.randn(1024, INPUT_WIDTHS["in"]).to(torch.bfloat16)
    reservoir, sums, times = Reservoir.empty(width, ROWS, seed=0), np.zeros(width, np.float32), []
    for _ in range(40):
        started = time.thread_time()
        reservoir.add(inputs, sums, 1.0)
        times.append(time.thread_time() - started)
    milliseconds = 1000 * statistics.mean(times)
    return [_at_most(f"recording, {width} wide", "time of the processor, a call", milliseconds, 1.0, "ms")]


def _measure_memory(runs: int) -> list[Row]:
    collector, peak = Collector(budget=BUDGET), 0
    for _ in range(4):
        for block in range(19):
            for name, width in INPUT_WIDTHS.items():
                collector.add(f"{block}.{name}", torch.randn(512, width, dtype=torch.bfloat16))
                peak = max(peak, collector.nbytes)
    return [_at_most("recording of 38 layers", "memory of rows, over the budget", peak / BUDGET, 1.0)]


PARTS: Mapping[str, Callable[[int], list[Row]]] = {
    "wide": _measure_wide,
    "shipped": _measure_shipped,
    "large": _measure_large,
    "recording": _measure_recording,
    "memory": _measure_memory,
}
"""What is measured, by name; each takes the number of runs."""


def _race(works: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Run functions in turn; returns the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            os.sync()  # what earlier runs wrote is on the disk
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _at_most(case: str, metric: str, value: float, target: float | None, unit: str = "ratio") -> Row:
    reached = None if target is None else value <= target
    return Row(case=case, metric=metric, value=value, unit=unit, target=target, reached=reached)


if __name__ == "__main__":
    main()
