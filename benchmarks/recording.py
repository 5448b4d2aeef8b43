"""What recording a calibration adds to a sampling, as a ratio within one run.

    python benchmarks/recording.py [--json FILE] [--runs N]

The shipped digits model is sampled in a real ComfyUI (ten classes, 20 steps of euler, cfg 3), in turn as it is and
behind Record Calibration; the ratio is of the medians. Time of one layer and call: a linear layer of 3,072 inputs that
is watched, less the same layer unwatched, for 4,096 input rows, when the reservoir is full. It holds the
reductions over all inputs, computed on the CPU. The ComfyUI is found as in the tests; without one that part is empty.
"""

from __future__ import annotations

import statistics
import time

import torch
from _table import Row, arguments, emit
from calibrated_rounding.quant.calibration.recorder import Recorder
from calibrated_rounding.tools.comfyui import HostMissing, example_model, find_host
from safetensors.torch import load_file
from torch import nn

MOST_TIME = 1.15
WIDTH, INPUT_ROWS, KEPT_ROWS, CALLS = 3072, 4096, 2048, 30
BUDGET = 2 << 30


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=9, help="samplings of each kind (default 9)")
    options = parser.parse_args()
    rows = [*_measure_sampling(options.runs), *_measure_call()]
    emit(rows, options.json, "What recording costs")


def _measure_sampling(runs: int) -> list[Row]:
    ratio = None
    try:
        times = find_host().call(
            "benchmarks._inside:time_recording",
            source=example_model("digits_wan.safetensors"),
            table=load_file(example_model("digits_conditioning.safetensors"))["conditioning"],
            runs=runs,
        )
        ratio = statistics.median(times["recorded"]) / statistics.median(times["plain"])
    except HostMissing as reason:
        print(reason)
    reached = None if ratio is None else ratio <= MOST_TIME
    case, metric = "shipped model, 20 steps", "recorded / plain sampling"
    return [Row(case=case, metric=metric, value=ratio, unit="ratio", target=MOST_TIME, reached=reached)]


def _measure_call() -> list[Row]:
    layer = nn.Linear(WIDTH, WIDTH, bias=False).to(torch.bfloat16)
    model, inputs = nn.Sequential(layer), torch.randn(INPUT_ROWS, WIDTH).to(torch.bfloat16)
    recorder = Recorder(KEPT_ROWS, BUDGET)
    plain, watched = list[float](), list[float]()
    with torch.no_grad():
        for _ in range(CALLS):
            plain.append(_time(model, inputs))
            with recorder.watch(model):
                watched.append(_time(model, inputs))
    milliseconds = 1000 * (statistics.median(watched) - statistics.median(plain))
    case = f"{WIDTH} inputs, {INPUT_ROWS} rows, on the CPU"
    return [Row(case=case, metric="added to a layer and call", value=milliseconds, unit="ms")]


def _time(model: nn.Module, inputs: torch.Tensor) -> float:
    started = time.perf_counter()
    model(inputs)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
