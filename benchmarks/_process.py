"""Whole processes, timed and weighed from outside: wall time, and the most memory that was resident.

Run as a script it is its own launcher: Linux counts the memory of whoever starts a process as the process's own until
it has loaded its program, so a small interpreter stands between the benchmark and what is measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one unit of ru_maxrss."""


@dataclass(frozen=True)
class Usage:
    """seconds: wall time, start-up included. megabytes: peak resident memory, in 10^6 bytes."""

    seconds: float
    megabytes: float


def measure(command: Sequence[str]) -> Usage:
    """Run a command to its end. Raises RuntimeError with its last words if it fails."""
    launched = subprocess.run(
        [sys.executable, "-S", __file__, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    result = json.loads(launched.stdout)
    if result["status"] != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {launched.stderr.strip()[-400:]}")
    return Usage(result["seconds"], result["megabytes"])


def race(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, Usage]:
    """The median of some runs of each command, taken in turn so that all meet the same conditions.

    A command that fails is left out of the result, and the reason printed.
    """
    taken: dict[str, list[Usage]] = {name: [] for name in commands}
    for _ in range(runs):
        for name in list(taken):
            try:
                taken[name].append(measure(commands[name]))
            except RuntimeError as reason:
                print(reason, file=sys.stderr)
                del taken[name]
    return {name: _median(usages) for name, usages in taken.items()}


def _median(usages: Sequence[Usage]) -> Usage:
    return Usage(
        statistics.median(usage.seconds for usage in usages), statistics.median(usage.megabytes for usage in usages)
    )


def _launch(command: Sequence[str]) -> dict[str, float]:
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    started = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ, file_actions=quiet)
    _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "megabytes": used.ru_maxrss * UNIT / 1e6,
    }


if __name__ == "__main__":
    print(json.dumps(_launch(sys.argv[1:])))
