"""Running the engine inside a node: in its own thread, with progress, and interruptible at any moment."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Generic, Protocol, TypeVar

import comfy.model_management
import comfy.utils
import torch

from ...quant import Progress
from ...quant.layer.memory import WORKSPACE
from ...quant.reports.progress import Cancel, OnProgress

POLL_SECONDS = 0.1
GRACE_SECONDS = 0.5
"""How long an interrupted node waits for the engine to remove its unfinished file."""
EXIT_SECONDS = 60.0
"""How long an ending ComfyUI waits for the engine: longer than the longest computation between two looks at ``cancel``,
a factorization of a very wide layer.
"""

AUTO, CPU, ALL_GPUS = "auto", "cpu", "all GPUs"

T = TypeVar("T")
Work = Callable[[OnProgress, Cancel], T]


class Observer(Protocol):
    """Follows a run, to show it."""

    def show(self, progress: Sequence[Progress]) -> None:
        """Take what the engine has reported since the last call."""

    def end(self, state: str, message: str = "") -> None:
        """Take the end of the run: "rounded", "interrupted" or "failed", then with the error's text."""


def run_engine(work: Work[T], node_id: str | None, observer: Observer) -> T:
    """Call ``work(on_progress, cancel)`` in a thread, and show its progress in a node.

    In a thread, because one factorization of a large layer takes longer than an interrupt may, and because a thread is
    outside the inference mode that nodes run in, where no optimizer works. If the user interrupts, the node stops
    immediately; the engine stops when it next asks ``cancel``, and writes nothing.

    Args:
        work: Runs the engine.
        node_id: Of the node, for its progress bar.
        observer: Follows the run.

    Returns:
        What ``work`` returns.

    Raises:
        InterruptProcessingException: the user has interrupted; otherwise what ``work`` raises.
    """
    worker = _Worker(work)
    worker.start()
    bar = _Bar(node_id)
    try:
        while not wait([worker.future], POLL_SECONDS).done:
            worker.keep_caller_if_ending()
            stop_if_interrupted()
            _report(worker, bar, observer)
        worker.keep_caller_if_ending()
        _report(worker, bar, observer)
        result = worker.future.result()
    except comfy.model_management.InterruptProcessingException:
        worker.cancel(GRACE_SECONDS)
        observer.end("interrupted")
        raise
    except BaseException as error:
        worker.cancel(GRACE_SECONDS)
        observer.end("failed", str(error))
        raise
    finally:
        worker.release_caller()
    observer.end("rounded")
    return result


def stop_if_interrupted() -> None:
    """Raise ComfyUI's own exception, which it shows as an interrupt and not as an error, if the user interrupts."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class _Worker(Generic[T]):
    """A thread that runs the engine."""

    def __init__(self, work: Work[T]) -> None:
        self.future = Future[T]()
        self._work, self._stop, self._progress = work, threading.Event(), list[Progress]()
        self._caller_rests = threading.Event()
        # Daemons, as Python waits for other threads before it calls `_end_workers`.
        self._thread = threading.Thread(target=self._run, name="calibrated-rounding", daemon=True)

    def start(self) -> None:
        _workers.add(self)
        self._thread.start()

    def take_progress(self) -> list[Progress]:
        """The reports since the last call."""
        count = len(self._progress)
        new, self._progress[:count] = self._progress[:count], []
        return new

    def cancel(self, seconds: float) -> bool:
        """Ask the engine to stop and wait for it; says whether it has."""
        self._stop.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def release_caller(self) -> None:
        """Let the caller go on, unless the interpreter ends."""
        self._caller_rests.set()
        self.keep_caller_if_ending()

    def keep_caller_if_ending(self) -> None:
        """Never return once the interpreter ends: the caller is a daemon too, and would go on with torch."""
        if _ending.is_set():
            self._caller_rests.set()
            threading.Event().wait()

    def wait_for_caller(self, seconds: float) -> None:
        """Wait until the caller has gone on, or is kept."""
        self._caller_rests.wait(seconds)

    def _run(self) -> None:
        try:
            self.future.set_result(self._work(self._progress.append, self._stop.is_set))
        except BaseException as error:
            self.future.set_exception(error)
        finally:
            _workers.discard(self)


_workers: set[_Worker] = set()
"""The threads that run the engine now, interrupted ones that have not ended yet included."""

_ending = threading.Event()
"""Set when the interpreter ends."""


@atexit.register
def _end_workers() -> None:
    """Stop the engine before the interpreter ends, which aborts where a thread still computes with torch."""
    _ending.set()
    workers, deadline = list(_workers), time.monotonic() + EXIT_SECONDS
    for worker in workers:
        worker.cancel(0)
    for worker in workers:
        worker.wait_for_caller(max(0, deadline - time.monotonic()))
    if not all([worker.cancel(max(0, deadline - time.monotonic())) for worker in workers]):
        logging.warning("calibrated-rounding: a layer is still being quantized; its file is removed at the next start.")


class _Bar:
    """A node's progress bar, which counts weights."""

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._bar: comfy.utils.ProgressBar | None = None

    def update(self, progress: Progress) -> None:
        self._bar = self._bar or comfy.utils.ProgressBar(progress.weights_total, node_id=self._node_id)
        self._bar.update_absolute(progress.weights_done, progress.weights_total)


def _report(worker: _Worker, bar: _Bar, observer: Observer) -> None:
    progress = worker.take_progress()
    if progress:
        bar.update(progress[-1])
        observer.show(progress)


def list_choices() -> list[str]:
    """The choices of where to compute."""
    return [AUTO, CPU, *([ALL_GPUS] if torch.cuda.device_count() > 1 else [])]


def choose_devices(choice: str) -> tuple[str, ...]:
    """The torch devices that one of `list_choices` stands for."""
    if choice == ALL_GPUS:
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return ("cpu",) if choice == CPU else (str(comfy.model_management.get_torch_device()),)


def make_room(devices: Sequence[str], nbytes: int) -> None:
    """Unload models where a device lacks ``nbytes`` of free memory."""
    for device in devices:
        if device == "cpu":
            continue
        comfy.model_management.free_memory(int(WORKSPACE * nbytes), torch.device(device))
