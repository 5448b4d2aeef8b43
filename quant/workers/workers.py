"""Who takes part in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from .assignment import assign
from .ranks import Ranks

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Workers:
    """The devices of this process, and its place among the ranks."""

    devices: tuple[str, ...] = ("cpu",)
    """Where layers are computed; each computes one at a time."""
    ranks: Ranks = field(default_factory=Ranks)

    def select_own(self, costs: Mapping[Key, float], fixed: float = 0.0) -> list[Key]:
        """The keys of this rank's jobs, in the given order.

        Args:
            costs: of all jobs.
            fixed: work that rank 0 has beside its jobs.
        """
        keys = list(costs)
        return [keys[index] for index in assign(list(costs.values()), self.ranks.size, fixed)[self.ranks.rank]]

    def merge(self, results: Mapping[Key, Value], wait: Callable[[], None]) -> dict[Key, Value]:
        """The results of all ranks.

        Args:
            results: this rank's own.
            wait: called often until the others are finished; may raise.

        Raises:
            RankError: another rank failed.
        """
        return {key: value for share in self.ranks.share(results, wait) for key, value in share.items()}
