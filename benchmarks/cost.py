"""What calibrated rounding costs in time and a calibration in memory, as ratios within one run.

    python benchmarks/cost.py [--json FILE] [--runs N]

The time of one wide layer is given in Cholesky factorizations of its inputs' second moment, which is the least that the
method needs; that of the shipped model in times of nearest rounding, without start-up. All are medians of runs taken in
turn, on as many threads as torch takes (OMP_NUM_THREADS). The memory is what a recording holds, over its budget, at its
fullest, for the layers of a model like Flux.1 fed with far more rows than fit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from _networks import Network, digits
from _table import Row, arguments, emit
from calibrated_rounding.quant import Recipe, quantize_state_dict
from calibrated_rounding.quant.calibration.collector import Collector
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.layer.quantize import quantize_layer
from calibrated_rounding.quant.layer.task import LayerTask

WIDE = (3072, 12288)
KINDS = ("float8_e4m3fn", "int8_row", "int8_convrot")
ROWS = 2048
IN_CHOLESKYS, IN_NEARESTS = 8.0, 5.0
BUDGET = 64 << 20
FED = {"in": 3072, "out": 12288}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts (default 3)")
    options = parser.parse_args()
    rows = [*_wide(options.runs), *_shipped(digits(), options.runs), _memory()]
    emit(rows, options.json, "What calibration costs")


def _wide(runs: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDE, generator=generator).mul_(0.02).to(torch.bfloat16)
    rank = 512
    inputs = torch.randn(ROWS, rank, generator=generator) @ torch.randn(rank, WIDE[1], generator=generator)
    known = InputStatistics(rows=inputs.to(torch.bfloat16), absmax=float(inputs.abs().max()))
    moment = (inputs.T @ inputs).div_(ROWS)
    moment.diagonal().add_(0.01 * float(moment.diagonal().mean()))

    def calibrated(name: str) -> Callable[[], object]:
        fmt = FORMATS[name]
        group, recipe = 256 if fmt.rotated else None, Recipe(rounding="calibrated")
        task = LayerTask(name="wide", weight=weight, format=fmt, group=group, recipe=recipe, inputs=known)
        return lambda: quantize_layer(task)

    factor = "factor"
    taken = _race({factor: lambda: torch.linalg.cholesky(moment)} | {name: calibrated(name) for name in KINDS}, runs)
    case = f"{WIDE[0]} x {WIDE[1]}"
    times = [Row(f"{case}, Cholesky of {WIDE[1]} x {WIDE[1]}", "time", taken.pop(factor), "s")]
    for name, seconds in taken.items():
        times.append(Row(f"{case}, {name}, calibrated", "time", seconds, "s"))
        times.append(
            _aimed(f"{case}, {name}, calibrated", "time, in Choleskys", seconds / times[0].value, IN_CHOLESKYS)
        )
    return times


def _shipped(network: Network, runs: int) -> list[Row]:
    tensors = {f"{layer}.weight": weight for layer, weight in network.weights.items()}

    def quantized(name: str, rounding: str) -> Callable[[], object]:
        recipe = Recipe(format=name, rounding=rounding, profile="generic")
        known = network.learned if rounding == "calibrated" else None
        return lambda: quantize_state_dict(tensors, recipe, statistics=known)

    found = []
    for name in KINDS:
        taken = _race({rounding: quantized(name, rounding) for rounding in ("nearest", "calibrated")}, runs)
        found += [
            Row(f"shipped model, {name}, {rounding}", "time", seconds, "s") for rounding, seconds in taken.items()
        ]
        ratio = taken["calibrated"] / taken["nearest"]
        found.append(_aimed(f"shipped model, {name}, calibrated", "time, in nearest's", ratio, IN_NEARESTS))
    return found


def _memory() -> Row:
    collector, fullest = Collector(budget=BUDGET), 0
    for _ in range(4):
        for block in range(19):
            for name, width in FED.items():
                collector.add(f"{block}.{name}", torch.randn(512, width, dtype=torch.bfloat16))
                fullest = max(fullest, collector.nbytes)
    return _aimed("recording of 38 layers", "memory of rows, over the budget", fullest / BUDGET, 1.0)


def _race(works: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each, run in turn."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _aimed(case: str, metric: str, value: float, target: float) -> Row:
    return Row(case, metric, value, "ratio", target, value <= target)


if __name__ == "__main__":
    main()
