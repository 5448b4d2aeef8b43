"""The processes that work on one file together: ranks, as `torchrun` starts them.

Ranks compute and write on their own. Results go through ``all_gather_object`` of `torch.distributed`, counts through
its store, and failures through last words (`last_words`). All of it runs on gloo, as no tensor of a GPU is exchanged.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from torch import distributed

from ..errors import Cancelled, QuantError, RankError
from .last_words import LAST_SECONDS, LastWords

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Value = TypeVar("Value")

LONGEST_RUN = timedelta(days=100)
POLL_SECONDS = 0.05


class Ranks:
    """A process that works alone: the only rank. `TorchRanks` is one of several."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._counts = Counter[str]()

    def share(self, value: Value, wait: Callable[[], None] = lambda: None) -> list[Value]:
        """Return the value of every rank, by rank; ``wait`` is called often until all have come, and may raise.

        Counts begin again.

        Raises:
            RankError: another rank failed.
        """
        self._counts.clear()
        return [value]

    def count(self, what: str, amount: int = 0) -> int:
        """Add to a count of all ranks, and return it."""
        self._counts[what] += amount
        return self._counts[what]

    def check(self) -> None:
        """Raise RankError if another rank failed."""

    def explain_stop(self) -> str:
        """What this rank says if it has to stop; empty: another rank says it."""
        return "Stopped on request; nothing was written."


ALONE = Ranks()


class TorchRanks(Ranks):
    """One of several ranks; `join_ranks` makes it."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        distributed.init_process_group("gloo", store=_prefixed("gloo", store), rank=rank, world_size=size)
        self._group = distributed.new_group(backend="gloo", timeout=LONGEST_RUN)
        self._store, self._round = _prefixed("counts", store), 0
        self._words = LastWords(rank, size, self._group)

    def share(self, value: Value, wait: Callable[[], None] = lambda: None) -> list[Value]:
        values: list[Any] = [None] * self.size
        with self._connected():
            self.count("arrived", 1)
            arrived = False
            while not arrived:
                arrived = self.count("arrived") == self.size
                wait()
                self.check()
                time.sleep(0 if arrived else POLL_SECONDS)
            distributed.all_gather_object(values, value, group=self._group)
        self._round += 1
        return values

    def count(self, what: str, amount: int = 0) -> int:
        with self._connected():
            return int(self._store.add(f"{self._round} {what}", amount))

    def check(self) -> None:
        if self._words.failure is not None:
            raise self._words.failure

    def explain_stop(self) -> str:
        """As of a process alone; other ranks hear it, as the process ends after this."""
        failure, text = self._words.failure, super().explain_stop()
        self._words.speak(Cancelled(text))
        if failure is not None and not failure.interrupted:
            return "" if failure.reported else str(failure)
        return "" if self.rank else text

    def end(self, error: BaseException | None) -> None:
        """Exchange last words, and leave the group.

        Raises:
            RankError: in place of an error that another rank reports, or that is the consequence of another's.
        """
        consequence = isinstance(error, (Cancelled, RankError))
        if error is not None and (self.rank or consequence):
            self._words.wait()
        word = self._words.speak(error)
        if not self._words.hear_all(LAST_SECONDS if error is not None else LONGEST_RUN.total_seconds()):
            _waiting.append(atexit.register(end_process, 1))
        elif self._words.failure is None:
            distributed.destroy_process_group()
        if error is None:
            return
        failure = self._words.failure
        interrupted = isinstance(error, Cancelled) and (failure is None or failure.interrupted)
        if failure is not None and (self.rank or (consequence and not interrupted)):
            raise failure from None
        if self.rank and isinstance(error, QuantError):
            raise RankError(word, reported=True) from None

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Within the block, a lost connection raises the failure of the rank that is gone."""
        try:
            yield
        except RuntimeError as error:
            self._words.wait()
            self.check()
            raise RankError(
                f"Rank {self.rank} lost the connection to the others: {_first_line(error)}; nothing was written.",
            ) from None


def is_launched() -> bool:
    """Whether a launcher started this process as one of several ranks."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the ranks that `torchrun` or another launcher started, for a block; without a launcher, stay alone.

    Ranks are started with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in their environment.

    Raises:
        RankError: another rank failed, or the ranks do not find each other. Only one rank reports an error: it is
            `RankError.reported` in all others.
    """
    if not is_launched():
        yield Ranks()
        return
    if not distributed.is_available():
        raise RankError("This PyTorch has no torch.distributed, so that it cannot work in several processes.")
    try:
        ranks = TorchRanks(*next(distributed.rendezvous("env://")))  # type: ignore[attr-defined]
    except (RuntimeError, ValueError) as error:
        raise RankError(f"Rank {os.environ['RANK']} does not find the others: {_first_line(error)}.") from None
    try:
        yield ranks
    except BaseException as error:
        ranks.end(error)
        raise
    ranks.end(None)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _prefixed(name: str, store: Store) -> Store:
    return distributed.PrefixStore(f"calibrated rounding {name}", store)  # type: ignore[attr-defined]


_waiting = list[Callable[[int], None]]()
"""Not empty: a thread of torch waits for a busy rank. torch cannot end the wait, nor the interpreter with it."""


def end_process(code: int) -> None:
    """End the process with an exit code, if the interpreter could not; else nothing happens."""
    if _waiting:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
