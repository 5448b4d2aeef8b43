"""The processes that work on one file together: ranks, as `torchrun` starts them.

Ranks compute and write on their own. Results go through ``all_gather_object`` of `torch.distributed`, counts through
its store. Each rank has one last word, for which rank 0 waits from the beginning, and all others for rank 0's: a death
ends the connection and is noticed immediately. All of it runs on gloo, as no tensor of a GPU is exchanged.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from ..errors import Cancelled, QuantError, RankError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Value = TypeVar("Value")

LONGEST_RUN = timedelta(days=100)
POLL_SECONDS = 0.05
WORD_BYTES = 4096
"""A last word, in UTF-8 and filled with zeros."""
INTERRUPTED = "\x18"
"""Begins the last word of a rank that was asked to stop."""
PATIENCE_SECONDS = 0.5
"""How long a rank waits before its last word: rank 0 reports an error that all ranks have, and a launcher that stops
the ranks does it because one has failed.
"""
LAST_SECONDS = 2.0
"""How long a rank waits at its end for the last words of others."""


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
        self._failure: RankError | None = None
        self._settled = threading.Event()
        """Set by a failure that is no interrupt, and by rank 0's last word."""
        self._speaking = threading.Lock()
        self._others = list(range(1, size)) if rank == 0 else [0]
        self._ears = [threading.Thread(target=self._listen, args=(other,), daemon=True) for other in self._others]
        for ear in self._ears:
            ear.start()

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
        if self._failure is not None:
            raise self._failure

    def explain_stop(self) -> str:
        """As of a process alone; other ranks hear it, as the process ends after this."""
        failure, text = self._failure, super().explain_stop()
        self._speak(self._make_word(Cancelled(text)))
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
            self._settled.wait(PATIENCE_SECONDS)
        word = self._make_word(error)
        self._speak(word)
        self._leave(LAST_SECONDS if error is not None else LONGEST_RUN.total_seconds())
        if error is None:
            return
        failure = self._failure
        interrupted = isinstance(error, Cancelled) and (failure is None or failure.interrupted)
        if failure is not None and (self.rank or (consequence and not interrupted)):
            raise failure from None
        if self.rank and isinstance(error, QuantError):
            raise RankError(word, reported=True) from None

    def _make_word(self, error: BaseException | None) -> str:
        """The last word after an error; empty without one."""
        if error is None:
            return ""
        failure, interrupted = self._failure, isinstance(error, Cancelled)
        if failure is not None and not (interrupted and failure.interrupted):
            return str(failure)
        text = str(error) if isinstance(error, QuantError) else f"{type(error).__name__}: {error}"
        named = text if self.rank == 0 else f"Rank {self.rank}: {text}"
        return INTERRUPTED + named if interrupted else named

    def _speak(self, word: str) -> None:
        """Send the last word to whoever listens, once."""
        if not self._speaking.acquire(blocking=False):
            return

        def send() -> None:
            for other in self._others:
                with suppress(RuntimeError):
                    distributed.send(_to_tensor(word), other, group=self._group)

        # A rank that cannot be reached does not hold this one up.
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        sender.join(LAST_SECONDS)

    def _leave(self, seconds: float) -> None:
        """Wait for the last words of others, and leave the group."""
        deadline = time.monotonic() + seconds
        for ear in self._ears:
            ear.join(max(0.0, deadline - time.monotonic()))
        if any(ear.is_alive() for ear in self._ears):
            # torch cannot end a wait for a rank that is busy, and the interpreter cannot end with the wait.
            atexit.register(_end_process)
        elif self._failure is None:
            distributed.destroy_process_group()

    def _listen(self, other: int) -> None:
        word = _to_tensor("")
        try:
            work = distributed.irecv(word, other, group=self._group)
            assert work is not None  # this rank is of the group
            work.wait()
        except RuntimeError:
            # Without rank 0, rank 1 reports.
            self._fail(RankError(_describe_loss(other), reported=self.rank > 1))
            return
        text = bytes(word.numpy()).rstrip(b"\0").decode(errors="ignore")
        if text:
            interrupted = text.startswith(INTERRUPTED)
            failure = RankError(text.removeprefix(INTERRUPTED), reported=self.rank > 0, interrupted=interrupted)
            self._fail(failure)
        if other == 0:
            self._settled.set()

    def _fail(self, failure: RankError) -> None:
        """Remember the first failure; an interrupt may be the consequence of another's."""
        if self._failure is None or (self._failure.interrupted and not failure.interrupted):
            self._failure = failure
        if not failure.interrupted:
            self._settled.set()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Within the block, a lost connection raises the failure of the rank that is gone."""
        try:
            yield
        except RuntimeError as error:
            self._settled.wait(PATIENCE_SECONDS)
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


def _describe_loss(rank: int) -> str:
    return (
        f"Rank {rank} ended without a word: it was killed, its memory was exhausted, or its machine is gone; "
        "nothing was written."
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _prefixed(name: str, store: Store) -> Store:
    return distributed.PrefixStore(f"calibrated rounding {name}", store)  # type: ignore[attr-defined]


def _to_tensor(text: str) -> torch.Tensor:
    data = text.encode()[:WORD_BYTES].ljust(WORD_BYTES, b"\0")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _end_process() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
