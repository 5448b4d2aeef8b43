"""How long a call takes: on a GPU between two events and with a cold cache, on the CPU by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

CACHE_BYTES = 1 << 30
"""More than any GPU's second-level cache, and enough to clear that the next call is queued meanwhile."""


def race(calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """The median milliseconds of every call, in turn in each round, so that all meet the same conditions."""
    for call in calls.values():
        for _ in range(2):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(_on_gpu(call, device) if device.type == "cuda" else _on_cpu(call))
    return {name: statistics.median(times) for name, times in taken.items()}


def _on_gpu(call: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    # The GPU clears while the CPU prepares the call, so that what is timed is the GPU's part.
    _filler(device).zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@lru_cache(maxsize=1)
def _filler(device: torch.device) -> Tensor:
    return torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device)


def _on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000
