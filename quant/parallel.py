"""Work on several threads whose result does not depend on how many there are.

torch divides a product, a factorization or a sum by its number of threads, and the order of float additions follows.
Here torch computes on one thread, and work is divided into pieces of a fixed size that any number of threads may take.
It is also what makes small operations fast: OpenMP's threads wait for each other at the end of each one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

BLOCK = 256
"""Rows of a result that are one piece of a product."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """The threads that may compute for one caller: the caller itself, and ``count - 1`` others."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._others = ThreadPoolExecutor(max(1, count - 1), "calibrated-rounding", initializer=self._join)

    def help(self, work: Callable[[], None], most: int) -> list[Future[None]]:
        """Call ``work`` in at most ``most`` other threads, as soon as they are free.

        No thread helps while the interpreter ends: Python starts nothing new then.
        """
        begun: list[Future[None]] = []
        with suppress(RuntimeError):
            begun += (self._others.submit(work) for _ in range(min(most, self.count - 1)))
        return begun

    def dismiss(self) -> None:
        self._others.shutdown(cancel_futures=True)

    def _join(self) -> None:
        _limit_to_one_thread()
        _local.crew = self


_local = threading.local()
"""``crew``: the crew that the thread belongs to, where it belongs to one."""

_limiting = threading.Lock()


@contextmanager
def crew() -> Iterator[None]:
    """Within the block, torch computes on one thread in this thread, and `run_all` on as many as torch had before.

    Other threads of the process keep their number, and this one gets its own back. Blocks may be nested, and several
    threads may be in a block of their own.
    """
    if getattr(_local, "crew", None) is not None:
        yield
        return
    count = torch.get_num_threads()
    if count > 1:
        _limit_to_one_thread()
    _local.crew = members = Crew(count)
    try:
        yield
    finally:
        _local.crew = None
        members.dismiss()
        if count > 1:
            torch.set_num_threads(count)


def run_all(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call a function with each item, on all threads of the crew, and return the results in the items' order.

    The caller takes part, so calls may be nested. Threads compute without gradients. If a call raises, no further item
    is begun, and the error of the first item that failed is raised when those under way have ended. Outside a `crew`
    the caller does all the work.
    """
    members, waiting = getattr(_local, "crew", None), list(items)
    if members is None or members.count == 1 or len(waiting) < 2:
        return [function(item) for item in waiting]
    batch = _Batch(function, waiting)
    batch.run(members)
    return batch.results


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right`` for matrices, computed in `BLOCK` rows at a time on the CPU."""
    result = left.new_empty(left.shape[0], right.shape[1])

    def multiply(rows: slice) -> None:
        torch.mm(left[rows], right, out=result[rows])

    run_all(multiply, cpu_blocks(len(left), BLOCK, left.device))
    return result


def blocks(length: int, size: int) -> Sequence[slice]:
    """Divide ``range(length)`` into slices of ``size``; the last may be smaller."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def cpu_blocks(length: int, size: int, device: torch.device) -> Sequence[slice]:
    """Divide as `blocks` does on the CPU; another device takes everything at a time."""
    return blocks(length, size if device.type == "cpu" else max(1, length))


class _Batch(Generic[Item, Result]):
    """The items of one call of `run_all`, which threads take one after the other."""

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self._function = function
        self._waiting = deque(enumerate(items))
        self._done: dict[int, Result] = {}
        self._errors: dict[int, BaseException] = {}
        self._inference = torch.is_inference_mode_enabled()

    @property
    def results(self) -> list[Result]:
        return [self._done[i] for i in range(len(self._done))]

    def run(self, members: Crew) -> None:
        others = members.help(self._help, len(self._waiting) - 1)
        try:
            self._work()
        except BaseException:
            self._waiting.clear()
            raise
        finally:
            _finish(others)
        if self._errors:
            raise self._errors[min(self._errors)]

    def _help(self) -> None:
        with torch.inference_mode(self._inference), torch.no_grad():
            self._work()

    def _work(self) -> None:
        while self._waiting:
            try:
                index, item = self._waiting.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self._done[index] = self._function(item)
            except Exception as error:
                self._errors[index] = error
                self._waiting.clear()


def _finish(futures: Sequence[Future[Any]]) -> None:
    """Wait for threads that have begun; the others find nothing to do."""
    wait([future for future in futures if not future.cancel()])


def _limit_to_one_thread() -> None:
    """Make torch compute on one thread in the calling thread.

    `torch.set_num_threads` also decides for threads that have not used torch yet; another thread sets that back.
    """
    with _limiting:
        count = torch.get_num_threads()
        torch.set_num_threads(1)
        keeper = threading.Thread(target=torch.set_num_threads, args=(count,))
        keeper.start()
        keeper.join()
