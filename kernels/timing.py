"""Times calls: on a GPU between two events and with a cold cache, on the CPU by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

CACHE_BYTES = 1 << 30
"""More than any GPU's second-level cache; clearing it takes so long that the next call is queued meanwhile."""


def race(calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Time several calls in turn, round after round, so that all meet the same conditions.

    Args:
        calls: By name; each is called twice beforehand.
        rounds: Timed calls of each.
        device: Where they run.

    Returns:
        The median milliseconds of each call.
    """
    for call in calls.values():
        for _ in range(2):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_time_on_gpu(call, device) if device.type == "cuda" else _time_on_cpu(call))
    return {name: statistics.median(values) for name, values in times.items()}


def _time_on_gpu(call: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    # The GPU clears while the CPU prepares the call, so only the GPU's part is timed.
    _make_filler(device).zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@lru_cache(maxsize=1)
def _make_filler(device: torch.device) -> Tensor:
    return torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device)


def _time_on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000
