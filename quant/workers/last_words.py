"""The last word of each rank: rank 0 waits for all of them from the beginning, and all others for rank 0's.

A rank that fails says why. A rank that dies says nothing, and ends the connection, which is noticed immediately.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import torch
from torch import distributed

from ..errors import Cancelled, QuantError, RankError

WORD_BYTES = 4096
"""A last word, in UTF-8 and filled with zeros."""
INTERRUPTED = "\x18"
"""Begins the last word of a rank that was asked to stop."""
PATIENCE_SECONDS = 0.5
"""How long a rank waits before its last word: rank 0 reports an error that all ranks have, and a launcher that stops
the ranks does it because one has failed.
"""
LAST_SECONDS = 5.0
"""How long a rank waits at its end for the last words of others."""


class LastWords:
    """What this rank says at its end, and what it hears of others."""

    def __init__(self, rank: int, size: int, group: Any) -> None:
        self.failure: RankError | None = None
        """Of another rank, as far as it is known."""
        self._rank, self._group = rank, group
        self._settled = threading.Event()
        """Set by a failure that is no interrupt, and by rank 0's last word."""
        self._speaking = threading.Lock()
        self._others = list(range(1, size)) if rank == 0 else [0]
        self._ears = [threading.Thread(target=self._listen, args=(other,), daemon=True) for other in self._others]
        for ear in self._ears:
            ear.start()

    def wait(self) -> None:
        """Give a failure of another rank time to come in."""
        self._settled.wait(PATIENCE_SECONDS)

    def speak(self, error: BaseException | None) -> str:
        """Send the last word after an error, or after none, to whoever listens, once; gives the word."""
        word = self._make_word(error)
        if not self._speaking.acquire(blocking=False):
            return word

        def send() -> None:
            for other in self._others:
                with suppress(RuntimeError):
                    distributed.send(_to_tensor(word), other, group=self._group)

        # A rank that cannot be reached does not hold this one up.
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        sender.join(LAST_SECONDS)
        return word

    def hear_all(self, seconds: float) -> bool:
        """Wait for the last words of others; says whether all have come."""
        deadline = time.monotonic() + seconds
        for ear in self._ears:
            ear.join(max(0.0, deadline - time.monotonic()))
        return not any(ear.is_alive() for ear in self._ears)

    def _make_word(self, error: BaseException | None) -> str:
        """The last word after an error; empty without one."""
        if error is None:
            return ""
        failure, interrupted = self.failure, isinstance(error, Cancelled)
        if failure is not None and not (interrupted and failure.interrupted):
            return str(failure)
        text = str(error) if isinstance(error, QuantError) else f"{type(error).__name__}: {error}"
        named = text if self._rank == 0 else f"Rank {self._rank}: {text}"
        return INTERRUPTED + named if interrupted else named

    def _listen(self, other: int) -> None:
        word = _to_tensor("")
        try:
            work = distributed.irecv(word, other, group=self._group)
            assert work is not None  # this rank is of the group
            work.wait()
        except RuntimeError:
            # Without rank 0, rank 1 reports.
            self._fail(RankError(_describe_loss(other), reported=self._rank > 1))
            return
        text = bytes(word.numpy()).rstrip(b"\0").decode(errors="ignore")
        if text:
            interrupted = text.startswith(INTERRUPTED)
            failure = RankError(text.removeprefix(INTERRUPTED), reported=self._rank > 0, interrupted=interrupted)
            self._fail(failure)
        if other == 0:
            self._settled.set()

    def _fail(self, failure: RankError) -> None:
        """Remember the first failure; an interrupt may be the consequence of another's."""
        if self.failure is None or (self.failure.interrupted and not failure.interrupted):
            self.failure = failure
        if not failure.interrupted:
            self._settled.set()


def _describe_loss(rank: int) -> str:
    return (
        f"Rank {rank} ended without a word: it was killed, its memory was exhausted, or its machine is gone; "
        "nothing was written."
    )


def _to_tensor(text: str) -> torch.Tensor:
    data = text.encode()[:WORD_BYTES].ljust(WORD_BYTES, b"\0")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
