"""Reading ahead and writing behind in threads, while the caller computes.

Few bytes wait on either side, so memory is bounded. An error appears where the caller gets to it, and no thread is left
when a block ends, however it ends.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

POLL_SECONDS = 0.2
"""How often a waiting caller looks whether it is to stop."""

Item = TypeVar("Item")
Result = TypeVar("Result")
CheckCancelled = Callable[[], None]


class _Room:
    """Bounds the bytes that wait; what is larger than the limit waits alone."""

    def __init__(self, limit: int) -> None:
        self.changed = threading.Condition()
        self.closed = False
        self._limit, self._used = limit, 0

    def fits(self, nbytes: int) -> bool:
        return self._used == 0 or self._used + nbytes <= self._limit

    def take(self, nbytes: int) -> None:
        self._used += nbytes

    def give_back(self, nbytes: int) -> None:
        self._used -= nbytes
        self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class ReadAhead(Generic[Item, Result]):
    """Calls a function with items in a thread, ahead of a caller that takes the results in the items' order."""

    def __init__(
        self, load: Callable[[Item], Result], items: Sequence[Item], size: Callable[[Item], int], limit: int
    ) -> None:
        self._load, self._items, self._size = load, items, size
        self._room = _Room(limit)
        self._ready: deque[tuple[Item, Result]] = deque()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="calibrated-rounding-reader", daemon=True)

    def results(self, check_cancelled: CheckCancelled) -> Generator[tuple[Item, Result], None, None]:
        """Yield each item with its result.

        Raises:
            Exception: what the function raises for an item, in its place; what ``check_cancelled`` raises.
        """
        self._thread.start()
        try:
            for _ in self._items:
                item, result = self._next(check_cancelled)
                yield item, result
                del result
        finally:
            self._room.close()
            self._thread.join()

    def _next(self, check_cancelled: CheckCancelled) -> tuple[Item, Result]:
        with self._room.changed:
            while not self._ready:
                if self._error is not None:
                    raise self._error
                check_cancelled()
                self._room.changed.wait(POLL_SECONDS)
            item, result = self._ready.popleft()
            self._room.give_back(self._size(item))
            return item, result

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._room.changed:
                    self._room.changed.wait_for(partial(self._may_load, item))
                    if self._room.closed:
                        return
                    self._room.take(self._size(item))
                result = self._load(item)
                with self._room.changed:
                    self._ready.append((item, result))
                    self._room.changed.notify_all()
                del result
        except BaseException as error:
            with self._room.changed:
                self._error = error
                self._room.changed.notify_all()

    def _may_load(self, item: Item) -> bool:
        return self._room.closed or self._room.fits(self._size(item))


class WriteBehind:
    """Calls functions in a thread, in order; `write_behind` makes one."""

    def __init__(self, limit: int) -> None:
        self._room = _Room(limit)
        self._jobs: deque[tuple[Callable[[], None], int]] = deque()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="calibrated-rounding-writer", daemon=True)

    def submit(self, job: Callable[[], None], nbytes: int, check_cancelled: CheckCancelled) -> None:
        """Have a function called that holds ``nbytes``; waits while too many bytes wait.

        Raises:
            Exception: what an earlier function raised; what ``check_cancelled`` raises.
        """
        with self._room.changed:
            while self._error is None and not self._room.fits(nbytes):
                check_cancelled()
                self._room.changed.wait(POLL_SECONDS)
            if self._error is not None:
                raise self._error
            self._room.take(nbytes)
            self._jobs.append((job, nbytes))
            self._room.changed.notify_all()

    def start(self) -> None:
        self._thread.start()

    def finish(self, abandon: bool) -> None:
        """End the thread after what waits, or without it.

        Raises:
            Exception: what a function raised, unless everything is abandoned.
        """
        if abandon:
            self._jobs.clear()
        self._room.close()
        self._thread.join()
        if self._error is not None and not abandon:
            raise self._error

    def _run(self) -> None:
        try:
            while True:
                with self._room.changed:
                    self._room.changed.wait_for(lambda: self._room.closed or self._jobs)
                    if not self._jobs:
                        return
                    job, nbytes = self._jobs.popleft()
                job()
                del job
                with self._room.changed:
                    self._room.give_back(nbytes)
        except BaseException as error:
            with self._room.changed:
                self._error = error
                self._room.changed.notify_all()


@contextmanager
def write_behind(limit: int) -> Iterator[WriteBehind]:
    """Write in a thread within the block, at most ``limit`` bytes behind; everything is written when it ends well."""
    writer = WriteBehind(limit)
    writer.start()
    try:
        yield writer
    except BaseException:
        writer.finish(abandon=True)
        raise
    writer.finish(abandon=False)
