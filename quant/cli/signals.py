"""Stop cleanly: a signal sets a flag that the engine asks for; a second one interrupts immediately.

Python calls signal handlers between two operations of its main thread, and a factorization of a wide layer is one
operation of many seconds. A second thread therefore sees the signal immediately (`signal.set_wakeup_fd`), and ends the
process if the engine has not stopped after `GRACE_SECONDS`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType

from ..errors import Cancelled
from ..files.staging import StagedFile, abandon_unfinished
from ..workers.ranks import ALONE
from .console import fail

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
GRACE_SECONDS = 1.0
"""How long the engine has to stop by itself."""


class Interrupted(Cancelled):
    """A signal asked to stop."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number
        """The signal."""


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
def stop_on_signals(explain: Callable[[], str] = ALONE.explain_stop) -> Iterator[Stop]:
    """Within the block, signals that ask the process to end set the flag; those that are ignored (nohup) stay so.

    Args:
        explain: returns what the process says if it is ended; empty: nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    # None: a handler that Python did not install and could not put back.
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
    taken = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    with watch_signals(taken, partial(end_process, StagedFile.count_published, explain)):
        for number in taken:
            signal.signal(number, stop.receive)
        try:
            yield stop
        finally:
            for number, handler in taken.items():
                signal.signal(number, handler)


@contextmanager
def watch_signals(numbers: Collection[int], end: Callable[[int], None]) -> Iterator[None]:
    """Call ``end(number)`` in a second thread if the block goes on for `GRACE_SECONDS` after one of these signals.

    The signals need handlers of Python's.
    """
    left = threading.Event()
    with ExitStack() as stack:
        reader, writer = map(stack.enter_context, socket.socketpair())
        writer.setblocking(False)

        def watch() -> None:
            received = next((n for n in iter(lambda: reader.recv(1), b"") if n[0] in numbers), None)
            if received is not None and not left.wait(GRACE_SECONDS):
                end(received[0])

        thread = threading.Thread(target=watch, name="calibrated-rounding signals", daemon=True)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread.start()
        try:
            yield
        finally:
            left.set()
            signal.set_wakeup_fd(before)
            writer.shutdown(socket.SHUT_WR)
            thread.join()


def end_process(published: int, explain: Callable[[], str], number: int) -> None:
    """End the process without its unfinished file. If the file is complete, the run is over and ends by itself.

    Args:
        published: `StagedFile.count_published` at the start of the run.
        explain: returns what to say; empty: nothing.
        number: the signal.
    """
    with abandon_unfinished(published) as nothing_written:
        if nothing_written:
            text = explain()
            if text and sys.stderr.isatty():
                print(file=sys.stderr)  # the progress bar's line
            if text:
                fail(text)
            sys.stderr.flush()
            os._exit(128 + number)
