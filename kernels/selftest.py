"""Compares the kernels with their eager references on this GPU, on small ragged problems.

python -m calibrated_rounding.kernels.selftest

Prints a table to paste into a bug report. The exit code is 1 if a kernel fails or disagrees, and without a GPU or
Triton.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import eager, tables
from .eager.groups import GroupGrid, RoundedGroup
from .eager.groups import round_group as eager_round_group
from .eager.ldlq import ColumnBlock
from .eager.ldlq import ldlq_block as eager_ldlq_block
from .tiles import BACKENDS, DeviceInfo, GemmShape
from .timing import race

Run = Callable[[], Sequence[Tensor]]

TOLERANCE = 1e-5
"""Allowed error relative to the largest value: float32 sums may be added in another order."""
ROUNDS = 5
SHAPES = ((1, 129, 136), (77, 257, 520), (300, 520, 1040), (4100, 520, 272))
"""M, N, K of products: ragged, and so many rows that each size of tile is chosen."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kernel with one problem."""

    name: str
    run: Run
    reference: Run
    slack: int = 0
    """Most by which codes may differ: values near a tie may be summed in another order."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case."""

    name: str
    problem: str | None
    """Why the kernel is wrong; None if it agrees."""
    ms: float | None = None


def main() -> int:
    """Run the command; returns the exit code."""
    if not torch.cuda.is_available():
        print("Nothing was tested: PyTorch finds no CUDA device.", file=sys.stderr)
        return 1
    if importlib.util.find_spec("triton") is None:
        print("Nothing was tested: Triton is not installed.", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    import triton

    print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}, Triton {triton.__version__}")
    outcomes = []
    for case in list_cases(device):
        outcomes.append(check(case, device))
        print(describe(outcomes[-1]), flush=True)
    wrong = [outcome.name for outcome in outcomes if outcome.problem is not None]
    print(f"{len(wrong)} of {len(outcomes)} disagree: {', '.join(wrong)}" if wrong else f"All {len(outcomes)} agree.")
    return 1 if wrong else 0


def describe(outcome: Outcome) -> str:
    """Return an outcome as one line."""
    result = f"{outcome.ms:9.4f} ms" if outcome.problem is None else f"WRONG: {outcome.problem}"
    return f"{outcome.name:48} {result}"


def check(case: Case, device: torch.device) -> Outcome:
    """Compare a kernel with its reference, and time it if they agree."""
    try:
        result = case.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        problem = _compare(result, case.reference(), case.slack)
        ms = None if problem else race({"kernel": case.run}, ROUNDS, device)["kernel"]
    except Exception as error:  # whatever a driver, a compiler or Triton raises belongs into the report
        lines = str(error).strip().splitlines() or ["no message"]
        return Outcome(name=case.name, problem=f"{type(error).__name__}: {lines[0]}")
    return Outcome(name=case.name, problem=problem, ms=ms)


def list_cases(device: torch.device) -> Iterator[Case]:
    """Return the cases for a GPU, or for the CPU in Triton's interpreter."""
    from .gpu.device import get_device_info

    info = get_device_info(device)
    yield from _list_quantizations(device)
    if _has_products(device):
        for block in (None, 64, 128):
            for shape in SHAPES:
                yield from _list_products(shape, block, device, info)
    yield from _list_ldlq(device)


def _has_products(device: torch.device) -> bool:
    old = device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)
    return not old


def _list_quantizations(device: torch.device) -> Iterator[Case]:
    from . import gpu

    x, w = _draw(77, 784, device).to(torch.bfloat16), _draw(257, 400, device)
    for block in (None, 64, 128):
        yield Case(
            name=f"act_quant, block {block}",
            run=lambda block=block: gpu.act_quant(x, block),  # type: ignore[misc]
            reference=lambda block=block: eager.act_quant(x, block),  # type: ignore[misc]
        )
    codes, scale = eager.act_quant(x, 128)
    w_codes, w_scale = eager.weight_quant(w, 128)
    yield Case(
        name="act_dequant, block 128",
        run=lambda: [gpu.act_dequant(codes, scale, 128, torch.float32)],
        reference=lambda: [eager.act_dequant(codes, scale, 128, torch.float32)],
    )
    yield Case(
        name="weight_dequant, block 128",
        run=lambda: [gpu.weight_dequant(w_codes, w_scale, 128, torch.float32)],
        reference=lambda: [eager.weight_dequant(w_codes, w_scale, 128, torch.float32)],
    )
    yield Case(
        name="int8_gelu, block 128",
        run=lambda: gpu.int8_gelu(codes, scale, 128, "tanh"),
        reference=lambda: eager.int8_gelu(codes, scale, 128, "tanh"),
        slack=1,
    )
    yield Case(
        name="rotate_quant, group 16",
        run=lambda: gpu.rotate_quant(x, 16),
        reference=lambda: eager.rotate_quant(x, 16),
        slack=1,
    )
    for block in (64, 128):
        yield Case(
            name=f"weight_quant, block {block}",
            run=lambda block=block: gpu.weight_quant(w, block),  # type: ignore[misc]
            reference=lambda block=block: eager.weight_quant(w, block),  # type: ignore[misc]
        )


def _list_products(
    shape: tuple[int, int, int], block: int | None, device: torch.device, info: DeviceInfo
) -> Iterator[Case]:
    from . import gpu

    m, n, k = shape
    a, a_scale = eager.act_quant(_draw(m, k, device), block)
    weight = _draw(n, k, device)
    b, b_scale = eager.act_quant(weight, None) if block is None else eager.weight_quant(weight, block)
    bias = _draw(1, n, device)[0]
    for backend in BACKENDS:
        tile = tables.choose_config(backend, GemmShape(m=m, n=n, k=k, block=block), info).tile
        yield Case(
            name=f"{backend} {m} x {n} x {k}, block {block}, tile {tile.rows} x {tile.columns}",
            run=lambda backend=backend: [  # type: ignore[misc]
                gpu.gemm(a, a_scale, b, b_scale, bias, block, torch.float32, backend)
            ],
            reference=lambda: [eager.gemm(a, a_scale, b, b_scale, bias, block, torch.float32)],
        )


def _list_ldlq(device: torch.device) -> Iterator[Case]:
    """LDLQ of sixteenths with a sparse factor, whose sums are exact in any order."""
    from .gpu import groups
    from .gpu.ldlq import ldlq_block

    weight = _draw(100, 77, device).mul_(16).round_().div_(16)
    factor = torch.eye(100, device=device) + 0.25 * torch.ones(99, device=device).diag(1)
    block = ColumnBlock(weight=weight, scale=torch.ones(1, 77, device=device).expand(100, 77), grid=_WholeNumbers())

    def run(function: Callable[[ColumnBlock, Tensor, Tensor, Tensor], None]) -> Sequence[Tensor]:
        errors = torch.zeros_like(weight)
        function(block, factor, weight.clone(), errors)
        return [errors]

    yield Case(name="ldlq", run=lambda: run(ldlq_block), reference=lambda: run(eager_ldlq_block))
    grid = GroupGrid.of(torch.arange(-31.0, 32.0, device=device), True)
    few, small, ones = weight[:16].contiguous(), factor[:16, :16].contiguous(), torch.ones(16, device=device)
    scales = torch.tensor([[0.5], [1.0], [2.0]], device=device).repeat(1, 77)

    def run_group(function: Callable[..., RoundedGroup]) -> Sequence[Tensor]:
        rounded = function(grid, few, few, small, ones, scales)
        return [rounded.errors, rounded.scale, rounded.cost]

    yield Case(
        name="group ldlq",
        run=lambda: run_group(groups.round_group),
        reference=lambda: run_group(eager_round_group),
    )


class _WholeNumbers:
    """The INT8 grid as `eager.ldlq.Grid`."""

    maximum, mantissa_bits, smallest_exponent = 127.0, 6, 6

    def encode(self, x: Tensor) -> Tensor:
        return x.round().clamp_(-127, 127).to(torch.int8)


def _draw(rows: int, columns: int, device: torch.device) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)).to(device)


def _compare(results: Sequence[Tensor], references: Sequence[Tensor], slack: int) -> str | None:
    """Return the first difference."""
    for result, reference in zip(results, references, strict=True):
        if result.dtype != reference.dtype or result.shape != reference.shape:
            return f"{result.dtype} {list(result.shape)} instead of {reference.dtype} {list(reference.shape)}"
        largest = float((result.double() - reference.double()).abs().max())
        allowed = TOLERANCE * float(reference.double().abs().max()) if reference.is_floating_point() else slack
        if not largest <= allowed:
            return f"differs by {largest:.3g}, at most {allowed:.3g} is allowed"
    return None


if __name__ == "__main__":
    sys.exit(main())
