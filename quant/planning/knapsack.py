"""One option for each layer, so that the summed cost is least within a size: the multiple-choice knapsack.

Solved by dynamic programming over sizes in units of a fraction of the range between the smallest and the largest total
(Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, section 11.5). Sizes are rounded up to whole units, so a limit
is never exceeded, and the optimum is missed by a unit a layer at most. A size on the curve is met exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

UNITS = 1 << 15
"""Sizes told apart between the smallest and the largest total."""


@dataclass(frozen=True)
class Option:
    nbytes: int
    cost: float
    """Anything that adds up over layers, finite and not negative."""


Choice = tuple[int, ...]
"""The index of each layer's option."""


@dataclass(frozen=True)
class Knapsack:
    """The options of each layer, at least one each."""

    layers: Sequence[Sequence[Option]]

    @property
    def smallest(self) -> int:
        return sum(min(option.nbytes for option in options) for options in self.layers)

    @property
    def cheapest(self) -> Choice:
        """The choice of least cost, whatever its size; the smaller of equals."""
        return tuple(
            min(range(len(options)), key=[(option.cost, option.nbytes) for option in options].__getitem__)
            for options in self.layers
        )

    def total(self, choice: Choice) -> Option:
        picked = [options[i] for options, i in zip(self.layers, choice, strict=True)]
        return Option(sum(option.nbytes for option in picked), sum(option.cost for option in picked))

    def within_size(self, nbytes: int) -> Choice:
        """The choice of least cost that takes at most ``nbytes``. Raises ValueError below `smallest`."""
        if nbytes < self.smallest:
            raise ValueError(f"{nbytes} bytes are less than the smallest choice takes, {self.smallest}")
        if self.total(self.cheapest).nbytes <= nbytes:
            return self.cheapest
        # The sizes of layers are rounded up, so that a choice of more units may fit as well.
        place = min(UNITS, (nbytes - self.smallest) // self._unit)
        places = range(min(UNITS, place + len(self.layers)), place, -1)
        traces = map(self._trace, places)
        return next((choice for choice in traces if self.total(choice).nbytes <= nbytes), self._trace(place))

    def within_cost(self, cost: float) -> Choice:
        """The smallest choice that costs at most ``cost``. Raises ValueError where none does."""
        fine = torch.nonzero(self._costs <= cost * (1 + 1e-9))
        if not len(fine):
            raise ValueError(f"no choice costs {cost} or less; the least is {float(self._costs[-1])}")
        return self._trace(int(fine[0]))

    def curve(self, points: int) -> list[Option]:
        """Totals of the best choices at up to ``points`` sizes, smallest first; no two of the same size."""
        places = torch.linspace(0, UNITS, points).round().long().tolist()
        found = {total.nbytes: total for total in (self.total(self._trace(place)) for place in places)}
        return [found[size] for size in sorted(found)]

    @cached_property
    def _unit(self) -> int:
        largest = sum(max(option.nbytes for option in options) for options in self.layers)
        return max(1, -(-(largest - self.smallest) // UNITS))

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """The least cost in each number of units, float64 ``[UNITS + 1]``, and each layer's option in it, uint8
        ``[layers, UNITS + 1]``.

        Everything is allocated once: fresh tensors for every layer leave a heap in pieces, of many times this size.
        """
        most = max(map(len, self.layers), default=0)
        costs = torch.zeros(UNITS + 1, dtype=torch.float64)
        totals = torch.empty(most, UNITS + 1, dtype=torch.float64)
        best = torch.empty(UNITS + 1, dtype=torch.long)
        picks = torch.empty(len(self.layers), UNITS + 1, dtype=torch.uint8)
        for options, layer_units, pick in zip(self.layers, self._units, picks, strict=True):
            rows = totals[: len(options)].fill_(torch.inf)
            for row, units, option in zip(rows, layer_units, options, strict=True):
                torch.add(costs[: UNITS + 1 - units], option.cost, out=row[units:])
            torch.min(rows, dim=0, out=(costs, best))
            pick.copy_(best)
        return costs, picks

    @property
    def _costs(self) -> Tensor:
        return self._table[0]

    @cached_property
    def _units(self) -> list[list[int]]:
        """Units of each layer's options, above its smallest."""
        least = [min(option.nbytes for option in options) for options in self.layers]
        return [
            [-(-(option.nbytes - smallest) // self._unit) for option in options]
            for options, smallest in zip(self.layers, least, strict=True)
        ]

    def _trace(self, units: int) -> Choice:
        """The best choice in so many units, from the last layer to the first."""
        choice = []
        for layer_units, pick in zip(reversed(self._units), reversed(self._table[1].unbind()), strict=True):
            choice.append(int(pick[units]))
            units -= layer_units[choice[-1]]
        return tuple(reversed(choice))
