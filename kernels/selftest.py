"""Compares the kernels with their eager references on this GPU, on small ragged problems.

python -m calibrated_rounding.kernels.selftest

Prints a table to paste into a bug report. The exit code is 1 if a kernel fails or disagrees, and without a GPU or
Triton.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import cases, tables
from .backend import PRODUCTS
from .cases import Case, ProductOutputs, describe_error, find_fault
from .tiles import BACKENDS, DeviceInfo, GemmShape
from .timing import race

ROUNDS = 5
SHAPES = ((1, 129, 136), (77, 257, 520), (300, 520, 1040), (4100, 520, 272))
"""M, N, K of products: ragged, and so many rows that each size of tile is chosen."""


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
        problem = find_fault(case, device)
        ms = None if problem else race({"kernel": case.run}, ROUNDS, device)["kernel"]
    except Exception as error:  # no room for the problem, or a kernel that fails later
        problem, ms = describe_error(error), None
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
    yield from cases.ldlq(_WholeNumbers(), device)
    yield cases.group_ldlq(16, True, device)
    yield cases.group_ldlq(16, False, device)


def _has_products(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= PRODUCTS.capability


def _list_quantizations(device: torch.device) -> Iterator[Case]:
    for block in (None, 64, 128):
        yield cases.act_quant(block, 784, torch.bfloat16, device)
    yield cases.act_dequant(128, 784, torch.float32, device)
    yield cases.weight_dequant(128, 400, torch.float32, device)
    yield cases.int8_gelu(128, 784, "tanh", device)
    yield cases.rotate_quant(16, 784, torch.bfloat16, device)
    for block in (64, 128):
        yield cases.weight_quant(block, 400, torch.float32, device)


def _list_products(
    size: tuple[int, int, int], block: int | None, device: torch.device, info: DeviceInfo
) -> Iterator[Case]:
    shape = GemmShape(m=size[0], n=size[1], k=size[2], block=block)
    outputs = ProductOutputs(dtype=torch.float32, bias=torch.float32)
    for backend in BACKENDS:
        config = tables.choose_config(backend, shape, info)
        yield cases.product(config, shape, outputs, device, ragged=False)


class _WholeNumbers:
    """The INT8 grid as `eager.ldlq.Grid`."""

    maximum, mantissa_bits, smallest_exponent = 127.0, 6, 6

    def encode(self, x: Tensor) -> Tensor:
        return x.round().clamp_(-127, 127).to(torch.int8)


if __name__ == "__main__":
    sys.exit(main())
