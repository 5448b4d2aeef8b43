"""Stop cleanly: a signal sets a flag that the engine asks for; a second one interrupts immediately."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class Stop:
    """number: the signal that came, None so far. Called as the engine's cancel callback."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        return self.number is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within the block, signals that ask the process to end set the flag; those that are ignored (nohup) stay so."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    # None: a handler that Python did not install and could not put back.
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
    taken = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
