"""What a pretend device counts: waits of the CPU, launches, copies and memory."""

from __future__ import annotations

import sys
import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def find_line() -> str:
    """The line of this project that is running, ``folder/file.py:12``."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith((f"{ROOT}/quant/", f"{ROOT}/kernels/")):
            return f"{Path(path).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside of the project"


@dataclass(kw_only=True)
class Memory:
    """Bytes of storages that are alive on the device."""

    live: int = 0
    peak: int = 0
    peak_line: str = ""
    _holders: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def hold(self, holder: torch.Tensor, values: torch.Tensor) -> None:
        """Count the storage of ``values`` for as long as ``holder`` lives; tensors may share it."""
        storage = values.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        self._holders[key] += 1
        weakref.finalize(holder, self._release, key, size)
        if self._holders[key] > 1:
            return
        self.live += size
        if self.live > self.peak:
            self.peak, self.peak_line = self.live, find_line()

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self.live -= size


@dataclass(kw_only=True)
class Ledger:
    """Counts of one use of a device."""

    waits: Counter[str] = field(default_factory=Counter)
    """Operation and line -> how often the CPU waited there for the device."""
    launches: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    memory: Memory = field(default_factory=Memory)

    def wait(self, reason: str) -> None:
        self.waits[f"{reason} at {find_line()}"] += 1

    @property
    def wait_count(self) -> int:
        return self.waits.total()

    def __str__(self) -> str:
        lines = [f"{count} x {reason}" for reason, count in self.waits.most_common()]
        peak = f"peak of {self.memory.peak} bytes at {self.memory.peak_line}"
        return "\n".join([f"{self.wait_count} waits, {self.launches} launches, {peak}", *lines])
