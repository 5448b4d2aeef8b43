"""The CPU's part of a block-wise linear layer on a GPU: everything but the start of the kernels in the driver.

Triton compiles for a pretend GPU, and starting a kernel does nothing, so no GPU is needed. What a real GPU adds to each
of the two launches, the driver's own call and switching to the tensor's device, is not in these figures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from calibrated_rounding.kernels import custom_ops, first_use, layouts, ops
from calibrated_rounding.tests.pretend.driver import PretendDriver
from torch.nn.functional import linear

ARCHITECTURE = 89
ROWS, OUTPUTS, INPUTS, BLOCK = 77, 640, 640, 128
BATCH = 200
LAYER = "linear layer, block-wise"


class SilentDriver(PretendDriver):
    """Starts nothing, and notes nothing."""

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: None


def measure(rounds: int) -> dict[str, float]:
    """Return microseconds of CPU time a call: medians over batches of calls, all of them in turn."""
    calls = _make_calls()
    times: dict[str, list[float]] = {name: [] for name in calls}
    with _pretend_gpu(), torch.inference_mode():
        for call in calls.values():
            call()
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(_time_batch(call))
    return {name: statistics.median(values) for name, values in times.items()}


def _make_calls() -> dict[str, Callable[[], object]]:
    layouts.register()
    x, bias = torch.randn(ROWS, INPUTS).to(torch.bfloat16), torch.zeros(OUTPUTS, dtype=torch.bfloat16)
    codes, scale = ops.weight_quant(torch.randn(OUTPUTS, INPUTS), BLOCK)
    weight = layouts.make_tensor(codes, scale, torch.bfloat16, BLOCK)
    plain = torch.zeros(1, 1)
    return {
        LAYER: lambda: linear(x, weight, bias),
        "its custom op alone": lambda: ops.block_linear(x, codes, scale, bias, BLOCK),
        "plain linear layer of 1 x 1": lambda: linear(plain, plain),
    }


@contextmanager
def _pretend_gpu() -> Iterator[None]:
    with (
        SilentDriver(ARCHITECTURE),
        mock.patch.object(custom_ops, "runs_triton", lambda backend, x: True),
        mock.patch.object(first_use, "find_fault", lambda case, device: None),
    ):
        yield
    first_use.forget()


def _time_batch(call: Callable[[], object]) -> float:
    start = time.process_time()
    for _ in range(BATCH):
        call()
    return (time.process_time() - start) / BATCH * 1e6
