"""Running the engine inside a node: in a thread of its own, showing progress, and interruptible at any moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

import comfy.model_management
import comfy.utils
import torch

from ...quant import Progress
from ...quant.reports.progress import Cancel, OnProgress
from ..page import live

POLL_SECONDS = 0.1
GRACE_SECONDS = 0.5
"""How long an interrupted run may take to remove what it has written before the node gives up waiting for it."""

T = TypeVar("T")


def run(work: Callable[[OnProgress, Cancel], T], node_id: str | None) -> T:
    """Call ``work(progress, cancel)`` in a thread and give its result.

    A thread, because one matrix decomposition of a large layer takes longer than an interrupt may; and because a
    thread is outside the inference mode that nodes run in, where no optimizer works. Interrupted, the node stops at
    once, and the engine at its next look at ``cancel``, writing nothing.
    """
    stop, seen, future = threading.Event(), list[Progress](), Future[T]()
    arguments = (future, work, seen.append, stop.is_set)
    # A daemon, so that a server told to quit does not wait for the layer at hand.
    threading.Thread(target=_fulfil, args=arguments, name="calibrated-rounding", daemon=True).start()
    show = _Display(node_id)
    try:
        while not wait([future], POLL_SECONDS).done:
            stop_if_interrupted()
            show(seen)
        show(seen)
        result = future.result()
    except BaseException as error:
        stop.set()
        wait([future], GRACE_SECONDS)
        show.failed(error)
        raise
    show.run.end("rounded")
    return result


def stop_if_interrupted() -> None:
    """Raise the host's own exception, which it shows as an interrupt and not as an error, if the user asked for it."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def _fulfil(future: Future[T], work: Callable[[OnProgress, Cancel], T], progress: OnProgress, cancel: Cancel) -> None:
    try:
        future.set_result(work(progress, cancel))
    except BaseException as error:
        future.set_exception(error)


class _Display:
    """The node's bar, by weights, and what the pack's front end shows."""

    def __init__(self, node_id: str | None) -> None:
        self.run = live.begin(node_id)
        self._node_id, self._shown, self._bar = node_id, 0, None

    def __call__(self, seen: list[Progress]) -> None:
        new = seen[self._shown :]
        if not new:
            return
        self._shown, now = self._shown + len(new), new[-1]
        self._bar = self._bar or comfy.utils.ProgressBar(now.weights_total, node_id=self._node_id)
        self._bar.update_absolute(now.weights_done, now.weights_total)
        self.run.show(new)

    def failed(self, error: BaseException) -> None:
        if isinstance(error, comfy.model_management.InterruptProcessingException):
            self.run.end("interrupted")
        else:
            self.run.end("failed", str(error))


def send_text(text: str, node_id: str | None) -> None:
    """Show a line of text in the node; nothing happens where no server runs."""
    server = live.running_server()
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)


DEVICES = ("auto", "cpu")


def device_name(choice: str) -> str:
    """The torch device that ``auto`` or ``cpu`` means here."""
    return "cpu" if choice == "cpu" else str(comfy.model_management.get_torch_device())


def make_room(device: str, largest_layer: int) -> None:
    """Unload models where a layer of ``largest_layer`` weights needs the device's memory (float32, some copies)."""
    if device != "cpu":
        comfy.model_management.free_memory(64 * largest_layer, torch.device(device))
