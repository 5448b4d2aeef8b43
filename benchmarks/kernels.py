"""The INT8 layers against bfloat16, comfy-kitchen and PyTorch's own products, on one GPU, in one run.

python benchmarks/kernels.py [--json FILE] [--tune] [--models NAME...] [--rows M...] [--rounds N] [--smoke | --host]

The table has median milliseconds and TOPS (2 M N K operations) for each layer of the models and each number of rows M.
Our layers include the quantization of the activation. They run in turn with bf16 ``torch.nn.functional.linear``, with
comfy-kitchen's ``int8_linear`` in every backend that is available, and with ``torch._int_mm`` and ``torch._scaled_mm``
on operands that are already quantized. The second-level cache is cleared before every call, and each output is compared
with the float32 layer's. Layers that the GPU's free memory does not hold are skipped, and named. --tune measures the
tiles first and writes the user's table; entries that exist are kept. Without a GPU nothing is measured, and the table
says so; --smoke then runs one small layer on the CPU to check the benchmark itself. --host measures the CPU's part of a
block-wise layer instead, with Triton and without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from _table import Row, arguments, emit
from calibrated_rounding.kernels import ops
from calibrated_rounding.kernels.backend import kernel_backend, runs_triton
from calibrated_rounding.kernels.memory import describe_size, fits
from calibrated_rounding.kernels.shapes import ROWS, SHAPES
from calibrated_rounding.kernels.timing import CACHE_BYTES, race
from torch import Tensor
from torch.nn.functional import linear

NOT_MEASURED = "not measured: no CUDA device"
BF16, ROW, BLOCK = "bf16 linear", "ours, row", "ours, block 128"
KITCHEN = "comfy-kitchen"
TALL = 4608
"""Least number of rows for which targets are set."""

ROW_TARGET, KITCHEN_TARGET, BLOCK_TARGET, QUANTIZATION_TARGET = 1.6, 1.15, 1.35, 0.10
ERRORS = {"bf16": 0.01, "ours": 0.03, "comfy-kitchen": 0.03, "torch._int_mm": 0.03, "torch._scaled_mm": 0.06}
"""Largest relative error of an output, by the first word of a contestant's name."""

HOST_CASE = "bfloat16, bias, without a GPU"
HOST_TARGET = 80.0
"""Most microseconds of CPU time that a block-wise layer may take."""

CHECKED = 256
"""Number of rows of an output that are compared."""

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer to time: bfloat16 ``x [M, K]`` and ``w [N, K]``."""

    case: str
    x: Tensor
    w: Tensor

    @property
    def operations(self) -> int:
        return 2 * self.x.shape[0] * self.w.shape[0] * self.w.shape[1]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tune", action="store_true", help="measure the tiles first")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES), help="only these")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), metavar="M", help="only these")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="timed calls of each (default 20)")
    parser.add_argument("--smoke", action="store_true", help="one small layer on the CPU")
    parser.add_argument("--host", action="store_true", help="the CPU's part of a block-wise layer; needs no GPU")
    options = parser.parse_args()
    if options.host:
        rows = measure_host(options.rounds)
        emit(rows, options.json, "CPU time of a block-wise layer", extra_versions={"triton": find_triton_version()})
        return
    shapes = {f"{model} {name}": shape for model in options.models for name, shape in SHAPES[model].items()}
    device = "cpu"
    if options.smoke:
        rows = measure({"small": (96, 128)}, [1, 20], options.rounds, "cpu")
    elif torch.cuda.is_available():
        device = "cuda"
        if options.tune:
            from calibrated_rounding.kernels.tuning import tune

            print(f"Tuned: {tune(dict.fromkeys(shapes.values()), options.rows)}")
        rows = measure(shapes, options.rows, options.rounds, device)
    else:
        print(NOT_MEASURED)
        rows = [
            Row(case=case, metric="all", value=None, unit=NOT_MEASURED) for case in list_cases(shapes, options.rows)
        ]
    title = "INT8 layers, a smoke run: nothing is measured" if options.smoke else "INT8 layers"
    emit(rows, options.json, title, device=device, extra_versions={"triton": find_triton_version()})


def measure_host(rounds: int) -> list[Row]:
    """Return microseconds of CPU time; nothing is measured without Triton."""
    if find_spec("triton") is None:
        return [Row(case=HOST_CASE, metric="all", value=None, unit="not measured: no Triton")]
    import _host_time

    targets = {_host_time.LAYER: HOST_TARGET}
    return [
        Row(
            case=HOST_CASE,
            metric=name,
            value=microseconds,
            unit="us",
            target=targets.get(name),
            reached=microseconds <= targets[name] if name in targets else None,
        )
        for name, microseconds in _host_time.measure(rounds).items()
    ]


def list_cases(shapes: Mapping[str, tuple[int, int]], rows: list[int]) -> Iterator[str]:
    return (f"{name} {n}x{k}, M {m}" for m in rows for name, (n, k) in shapes.items())


def measure(shapes: Mapping[str, tuple[int, int]], rows: list[int], rounds: int, device: str) -> list[Row]:
    result: list[Row] = []
    cases = list_cases(shapes, rows)
    for m in rows:
        for n, k in shapes.values():
            case, needed = next(cases), peak_bytes(m, n, k)
            if not fits(needed, torch.device(device)):
                size = describe_size(needed)
                print(f"{case}: skipped, {size} are not free", flush=True)
                result.append(Row(case=case, metric="all", value=None, unit=f"not measured: {size} are not free"))
                continue
            generator = torch.Generator(device).manual_seed(n + k + m)
            x = torch.randn(m, k, device=device, generator=generator).to(torch.bfloat16)
            w = torch.randn(n, k, device=device, generator=generator).mul_(k**-0.5).to(torch.bfloat16)
            result += measure_layer(Layer(case, x, w), rounds)
            print(format_last(result), flush=True)
    return result


def peak_bytes(m: int, n: int, k: int) -> int:
    """Return the bytes that measuring a layer takes: operands in 16 and 8 bits, float32 copies, and int32 products."""
    inputs, weights, outputs = m * k, n * k, m * n
    return 5 * inputs + 8 * weights + 8 * max(inputs, weights) + 12 * outputs + CACHE_BYTES


def measure_layer(layer: Layer, rounds: int) -> list[Row]:
    """Return times, TOPS, errors and ratios of all implementations that can run this layer."""
    calls, rows = {}, []
    reference = layer.x[:CHECKED].float() @ layer.w.float().T
    for name, call in list_contestants(layer).items():
        try:
            error = float((call()[:CHECKED].float() - reference).norm() / reference.norm())
        except Exception as reason:  # the table reports any backend that cannot run here
            rows.append(Row(case=layer.case, metric=name, value=None, unit=f"cannot run: {type(reason).__name__}"))
            continue
        limit = ERRORS[name.split()[0].rstrip(",")]
        rows.append(
            Row(
                case=layer.case,
                metric=f"{name}, error",
                value=error,
                unit="ratio",
                target=limit,
                reached=error <= limit,
            )
        )
        calls[name] = call
    times = race({**calls, **list_parts(layer)}, rounds, layer.x.device)
    for name, milliseconds in times.items():
        rows.append(Row(case=layer.case, metric=name, value=milliseconds, unit="ms"))
        if not name.startswith("quantization"):
            rows.append(Row(case=layer.case, metric=name, value=layer.operations / milliseconds / 1e9, unit="TOPS"))
    return rows + compute_ratios(layer, times)


def list_contestants(layer: Layer) -> dict[str, Call]:
    x, w = layer.x, layer.w
    return {BF16: partial(linear, x, w), **list_ours(x, w), **list_kitchen(x, w), **list_torch(x, w)}


def list_ours(x: Tensor, w: Tensor) -> dict[str, Call]:
    """Return our layers, with the selected and with each backend, and rotated as by ComfyUI's convrot."""
    row, block = ops.act_quant(w, None), ops.weight_quant(w, 128)
    rotated = ops.rotate_quant(w, 64)
    calls: dict[str, Call] = {
        ROW: partial(ops.row_linear, x, *row, None, None),
        "ours, row rotated 64": partial(ops.row_linear, x, *rotated, None, 64),
        BLOCK: partial(ops.block_linear, x, *block, None, 128),
    }
    backends = ("triton", "triton_v2") if runs_triton("auto", x) else ("eager",)
    named = {f"{name}, {backend}": with_backend(backend, calls[name]) for name in (ROW, BLOCK) for backend in backends}
    return calls | named


def with_backend(backend: str, call: Call) -> Call:
    def run() -> Tensor:
        with kernel_backend(backend):
            return call()

    return run


def list_kitchen(x: Tensor, w: Tensor) -> dict[str, Call]:
    """Return comfy-kitchen's layer in every backend that has an int8_linear here."""
    # Imported here: without a GPU some versions of Triton make importing it fail.
    import comfy_kitchen

    codes, scale = ops.act_quant(w, None)
    backends = [
        name
        for name, state in comfy_kitchen.list_backends().items()
        if state["available"] and "int8_linear" in state["capabilities"]
    ]

    def run(backend: str) -> Tensor:
        with comfy_kitchen.use_backend(backend):
            result: Tensor = comfy_kitchen.int8_linear(x, codes, scale, out_dtype=x.dtype)
            return result

    return {f"{KITCHEN} {backend}": partial(run, backend) for backend in sorted(backends)}


def list_torch(x: Tensor, w: Tensor) -> dict[str, Call]:
    """Return PyTorch's own products, on operands that are already quantized."""
    (a, a_scale), (b, b_scale) = ops.act_quant(x, None), ops.act_quant(w, None)
    e4m3 = torch.float8_e4m3fn
    left, right = ((t.float() / s * (448 / 127)).to(e4m3) for t, s in ((x, a_scale), (w, b_scale)))
    steps = {"scale_a": a_scale * (127 / 448), "scale_b": (b_scale * (127 / 448)).T.contiguous()}
    scaled = partial(torch._scaled_mm, left, right.T, **steps, out_dtype=torch.bfloat16, use_fast_accum=True)
    return {
        "torch._int_mm and scales": lambda: torch._int_mm(a, b.T) * a_scale * b_scale.T,
        "torch._scaled_mm": scaled,
    }


def list_parts(layer: Layer) -> dict[str, Call]:
    """Return what has no output to compare: the quantization of an activation, and the bare int32 product."""
    (a, _), (b, _) = ops.act_quant(layer.x, None), ops.act_quant(layer.w, None)
    bare: dict[str, Call] = {} if layer.x.shape[0] <= 16 else {"torch._int_mm": lambda: torch._int_mm(a, b.T)}
    return bare | {
        "quantization, row": lambda: ops.act_quant(layer.x, None)[0],
        "quantization, block 128": lambda: ops.act_quant(layer.x, 128)[0],
    }


def compute_ratios(layer: Layer, times: Mapping[str, float]) -> list[Row]:
    """Return the speed-ups over bfloat16 and over comfy-kitchen's fastest, with their targets."""
    tall, single = layer.x.shape[0] >= TALL, layer.x.shape[0] == 1
    fastest = min((ms for name, ms in times.items() if name.startswith(KITCHEN)), default=None)
    speedups = [
        ("row against bf16", ratio(times, BF16, ROW), ROW_TARGET if tall else 1.0 if single else None),
        ("block 128 against bf16", ratio(times, BF16, BLOCK), BLOCK_TARGET if tall else 1.0 if single else None),
        (f"row against {KITCHEN}'s fastest", fastest and fastest / times[ROW], KITCHEN_TARGET if tall else None),
    ]
    rows = [
        Row(
            case=layer.case,
            metric=metric,
            value=value,
            unit="ratio",
            target=target,
            reached=None if target is None or value is None else value >= target,
        )
        for metric, value, target in speedups
    ]
    share = times["quantization, row"] / times[ROW]
    limit = QUANTIZATION_TARGET if tall else None
    return [
        *rows,
        Row(
            case=layer.case,
            metric="quantization of row",
            value=share,
            unit="ratio",
            target=limit,
            reached=None if limit is None else share < limit,
        ),
    ]


def ratio(times: Mapping[str, float], slow: str, fast: str) -> float | None:
    return times[slow] / times[fast] if slow in times and fast in times else None


def format_last(rows: list[Row]) -> str:
    """Format the last layer as one line."""
    last = {row.metric: row.value for row in rows if row.case == rows[-1].case and row.unit == "ms"}
    return f"{rows[-1].case}: " + ", ".join(f"{name} {value:.4g}" for name, value in last.items() if value) + " ms"


def find_triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
