"""Size against error: what the best choice of formats costs at every size, and the choice that a recipe's target asks
for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from ..recipe import Recipe
from ..text import megabytes, table
from .knapsack import Choice, Knapsack, Option

CURVE_POINTS = 33
LINES = 8
"""Points of the curve that a table of text shows."""
GIGABYTE = 10**9


@dataclass(frozen=True)
class CurvePoint:
    """nbytes: of all tensors of the output. error: relative, root mean square over layers as each counts."""

    nbytes: int
    error: float


@dataclass(frozen=True)
class SizeCurve:
    """curve: the best choices from the smallest to the largest size. chosen: where this output lies.

    by_outputs: errors are of outputs on recorded inputs as run; else of weights.
    """

    curve: tuple[CurvePoint, ...]
    chosen: CurvePoint
    by_outputs: bool

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SizeCurve:
        curve = tuple(CurvePoint(**point) for point in data["curve"])
        return cls(curve, CurvePoint(**data["chosen"]), data["by_outputs"])

    def lines(self) -> list[str]:
        """The curve as a small table, with the chosen point in it."""
        shown = {point: "" for point in self.curve[:: max(1, len(self.curve) // LINES)]} | {self.chosen: "chosen"}
        rows = [(megabytes(p.nbytes), f"{p.error:.5f}", shown[p]) for p in sorted(shown, key=lambda p: p.nbytes)]
        what = "error of outputs as run" if self.by_outputs else "error of weights"
        return table([("MB", what, ""), *rows], right=frozenset({0, 1}))


@dataclass(frozen=True)
class Budget:
    """The options of all layers, the bytes of all that has no choice, and what all layers count together.

    source: bytes of the float model.
    """

    knapsack: Knapsack
    others: int
    importance: float
    source: int

    def choose(self, recipe: Recipe) -> Choice:
        """The choice of least error within the recipe's size, or the smallest within its error; without a target, the
        one of least error. Raises RecipeError for a target that no choice meets.
        """
        if recipe.target_error is not None:
            return self.knapsack.within_cost(recipe.target_error**2 * self.importance)
        sizes = {"target_gb": (recipe.target_gb, GIGABYTE), "target_share": (recipe.target_share, self.source)}
        wanted = [(name, value, round(value * unit)) for name, (value, unit) in sizes.items() if value is not None]
        if not wanted:
            return self.knapsack.cheapest
        return self._within_size(*wanted[0])

    def point(self, total: Option) -> CurvePoint:
        return CurvePoint(
            self.others + total.nbytes, math.sqrt(total.cost / self.importance) if self.importance > 0 else 0.0
        )

    def curve(self) -> tuple[CurvePoint, ...]:
        return tuple(map(self.point, self.knapsack.curve(CURVE_POINTS)))

    def _within_size(self, name: str, value: float, nbytes: int) -> Choice:
        smallest = self.others + self.knapsack.smallest
        if nbytes < smallest:
            raise RecipeError(
                f"{name} {value:g} is {nbytes / GIGABYTE:.3g} GB, and the formats allowed cannot take this model below "
                f"{smallest / GIGABYTE:.4g} GB (a share of {smallest / self.source:.2f}); ask for more."
            )
        return self.knapsack.within_size(nbytes - self.others)
