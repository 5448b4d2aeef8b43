"""Progress on stderr: a bar on a terminal, a line for every tenth elsewhere, nothing with --quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ..reports.progress import Progress
from ..text import percent
from .console import say

BAR = "{percentage:3.0f}% |{bar:20}| {elapsed} < {remaining}{postfix}"
STEPS = 10


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A progress callback for the engine, or None."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with tqdm(total=1.0, bar_format=BAR, file=sys.stderr, dynamic_ncols=True) as bar:
            yield lambda progress: _advance(bar, progress)
    else:
        yield _Lines()


def _advance(bar: tqdm[None], progress: Progress) -> None:
    bar.set_postfix_str(_state(progress), refresh=False)
    bar.n = progress.fraction
    bar.refresh()


class _Lines:
    def __init__(self) -> None:
        self._started, self._shown, self._stage = time.monotonic(), 0, ""

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._started, self._shown, self._stage = time.monotonic(), 0, progress.stage
        step = int(progress.fraction * STEPS)
        if step <= self._shown:
            return
        self._shown = step
        left = (time.monotonic() - self._started) * (1 / progress.fraction - 1)
        say(f"{progress.fraction:4.0%}, {left:.0f} s left, {_state(progress)}", sys.stderr)


def _state(progress: Progress) -> str:
    stage = "measuring " if progress.stage == "measuring" else ""
    parts = [f"{stage}{progress.done}/{progress.total}"]
    if progress.last is not None:
        parts.append(f"{progress.last.name} error {percent(progress.last.errors.primary.error)}")
    elif progress.next_layer is not None:
        parts.append(progress.next_layer)
    return ", ".join(parts)
