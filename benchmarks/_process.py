"""Wall time and peak resident memory of whole processes, measured from outside.

Run as a script it is its own launcher: until a process has loaded its program, Linux counts its parent's memory as its
own, so a small interpreter starts the command.
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
"""Bytes per unit of ru_maxrss."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Time and memory of a process."""

    seconds: float
    """Wall time with start-up; of several runs the median."""
    megabytes: float
    """Peak resident memory in 10^6 bytes; of several runs the median."""
    fastest: float
    """Least wall time of several runs."""
    slowest: float
    """Largest wall time of several runs."""


def measure(command: Sequence[str]) -> Usage:
    """Run a command to its end.

    Raises:
        RuntimeError: The command failed; the message has the end of its error output.
    """
    launched = subprocess.run(
        [sys.executable, "-S", __file__, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    result = json.loads(launched.stdout)
    if result["status"] != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {launched.stderr.strip()[-400:]}")
    seconds = result["seconds"]
    return Usage(seconds=seconds, megabytes=result["megabytes"], fastest=seconds, slowest=seconds)


def race(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, Usage]:
    """Run commands in turn, each round beginning with another one; returns the median usage of each.

    What earlier commands wrote is on the disk before a command starts.

    A command that fails is missing in the result, and the reason is printed.
    """
    measured: dict[str, list[Usage]] = {name: [] for name in commands}
    for number in range(runs):
        names = list(measured)
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            os.sync()
            try:
                measured[name].append(measure(commands[name]))
            except RuntimeError as reason:
                print(reason, file=sys.stderr)
                del measured[name]
    return {name: _median(usages) for name, usages in measured.items()}


def _median(usages: Sequence[Usage]) -> Usage:
    seconds = [usage.seconds for usage in usages]
    megabytes = statistics.median(usage.megabytes for usage in usages)
    middle = statistics.median(seconds)
    return Usage(seconds=middle, megabytes=megabytes, fastest=min(seconds), slowest=max(seconds))


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
