"""The devices of this process: each takes a job as soon as it is free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import torch

from ..parallel import crew
from ..pipelining import POLL_SECONDS, CheckCancelled

Job = TypeVar("Job")
Result = TypeVar("Result")


def spread(
    jobs: Iterable[Job],
    devices: Sequence[str],
    work: Callable[[Job, str], Result],
    check_cancelled: CheckCancelled,
) -> Generator[Result, None, None]:
    """Yield ``work(job, device)`` of every job, in the order in which they are finished.

    Jobs are taken in the caller's thread, which also drives a single device. Several devices have a thread each, and
    hold one job each. An error of a job is raised when the jobs under way have ended.
    """
    if len(devices) > 1:
        yield from _Pool(devices, work).results(jobs, check_cancelled)
        return
    with _driving(devices[0]):
        for job in jobs:
            check_cancelled()
            yield work(job, devices[0])
            del job


class _Pool(Generic[Job, Result]):
    """A thread for each device."""

    def __init__(self, devices: Sequence[str], work: Callable[[Job, str], Result]) -> None:
        self._work = work
        self._waiting = SimpleQueue[Callable[[], Job] | None]()
        self._done = SimpleQueue[tuple[Result | None, BaseException | None]]()
        self._threads = [
            threading.Thread(target=self._drive, args=(device,), name=f"calibrated-rounding {device}", daemon=True)
            for device in devices
        ]

    def results(self, jobs: Iterable[Job], check_cancelled: CheckCancelled) -> Generator[Result, None, None]:
        under_way = 0
        for thread in self._threads:
            thread.start()
        try:
            for job in jobs:
                check_cancelled()
                self._waiting.put([job].pop)  # which holds the job until it is taken
                del job
                under_way += 1
                if under_way == len(self._threads):
                    yield self._take(check_cancelled)
                    under_way -= 1
            for _ in range(under_way):
                yield self._take(check_cancelled)
        finally:
            for _ in self._threads:
                self._waiting.put(None)
            for thread in self._threads:
                thread.join()

    def _take(self, check_cancelled: CheckCancelled) -> Result:
        while True:
            check_cancelled()
            try:
                result, error = self._done.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            if error is not None:
                raise error
            return result  # type: ignore[return-value]

    def _drive(self, device: str) -> None:
        with torch.no_grad(), _driving(device):
            while (take := self._waiting.get()) is not None:
                try:
                    self._done.put((self._work(take(), device), None))
                except BaseException as error:
                    self._done.put((None, error))


def _driving(device: str) -> AbstractContextManager[None]:
    """A GPU is driven by one thread; on the CPU, a thread may have others help."""
    return crew() if torch.device(device).type == "cpu" else nullcontext()
