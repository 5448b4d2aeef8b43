"""Size against error: the best choice of formats at every size, and the choice for a recipe's target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from ..recipe import Recipe
from ..text import megabytes, percent, table
from .knapsack import Choice, Knapsack, Option

CURVE_POINTS = 33
LINES = 8
"""Points of the curve that a table of text shows."""
GIGABYTE = 10**9


@dataclass(frozen=True)
class CurvePoint:
    nbytes: int
    """Of all tensors of the output."""
    error: float
    """Relative; root mean square over the layers, weighted by importance."""


@dataclass(frozen=True)
class SizeCurve:
    """Error of the best choice of formats at every size."""

    curve: tuple[CurvePoint, ...]
    """From the smallest to the largest size."""
    chosen: CurvePoint
    by_outputs: bool
    """Errors are output errors (W8A8) on recorded inputs; else weight errors."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SizeCurve:
        curve = tuple(CurvePoint(**point) for point in data["curve"])
        return cls(curve, CurvePoint(**data["chosen"]), data["by_outputs"])

    def lines(self) -> list[str]:
        """The curve as a small table, with the chosen point in it."""
        points = {point: "" for point in self.curve[:: max(1, len(self.curve) // LINES)]} | {self.chosen: "chosen"}
        rows = [(megabytes(p.nbytes), percent(p.error, 3), points[p]) for p in sorted(points, key=lambda p: p.nbytes)]
        error = "output error (W8A8)" if self.by_outputs else "weight error"
        return table([("MB", f"{error}, all layers together", ""), *rows], right=frozenset({0, 1}))


@dataclass(frozen=True)
class SizeTarget:
    """A recipe's limit of the size."""

    setting: str
    value: float
    nbytes: int


def find_size_target(recipe: Recipe, source: int) -> SizeTarget | None:
    """The recipe's limit of the size for a float model of ``source`` bytes; None if it has none."""
    sizes = {"target_gb": (recipe.target_gb, GIGABYTE), "target_share": (recipe.target_share, source)}
    targets = [SizeTarget(name, value, round(value * unit)) for name, (value, unit) in sizes.items() if value]
    return targets[0] if targets else None


def refuse_size(target: SizeTarget, smallest: int, source: int) -> RecipeError:
    """The error of a limit that no choice of formats meets; ``smallest``: bytes of the smallest choice."""
    return RecipeError(
        f"{target.setting} {target.value:g} is {target.nbytes / GIGABYTE:.3g} GB, and the formats allowed cannot take "
        f"it below {smallest / GIGABYTE:.4g} GB (a share of {smallest / source:.2f}); ask for more."
    )


def refuse_target(recipe: Recipe) -> RecipeError:
    """The error of a target that every layer meets as it is."""
    name = next(name for name in ("target_share", "target_gb", "target_error") if recipe.get(name) is not None)
    change = "a larger error" if name == "target_error" else "a smaller size"
    return RecipeError(f"{name} {recipe.get(name):g} leaves every layer as it is; ask for {change}.")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Everything that a choice of formats is made by."""

    knapsack: Knapsack
    """The options of all layers that have a choice."""
    others: int
    """Bytes of all other tensors of the output."""
    importance: float
    """Of all layers together."""
    source: int
    """Bytes of the float model."""

    def choose(self, recipe: Recipe) -> Choice:
        """The choice of least error within the recipe's size, or the smallest within its error.

        Raises:
            RecipeError: no choice meets the target.
        """
        if recipe.target_error is not None:
            return self.knapsack.within_cost(recipe.target_error**2 * self.importance)
        target = find_size_target(recipe, self.source)
        return self.knapsack.cheapest if target is None else self._within_size(target)

    def point(self, total: Option) -> CurvePoint:
        return CurvePoint(
            self.others + total.nbytes, math.sqrt(total.cost / self.importance) if self.importance > 0 else 0.0
        )

    def curve(self) -> tuple[CurvePoint, ...]:
        return tuple(map(self.point, self.knapsack.curve(CURVE_POINTS)))

    def _within_size(self, target: SizeTarget) -> Choice:
        smallest = self.others + self.knapsack.smallest
        if target.nbytes < smallest:
            raise refuse_size(target, smallest, self.source)
        return self.knapsack.within_size(target.nbytes - self.others)


def join_budgets(budgets: Sequence[Budget]) -> Budget:
    """One budget for several models, whose layers follow each other in its options.

    Costs become each model's mean squared error, its layers weighted by importance, so that an error counts alike in
    every model; the joint error is the root of the models' mean.
    """
    options = [
        [Option(option.nbytes, option.cost / (budget.importance or 1.0)) for option in layer]
        for budget in budgets
        for layer in budget.knapsack.layers
    ]
    return Budget(
        knapsack=Knapsack(options),
        others=sum(budget.others for budget in budgets),
        importance=float(len(budgets)),
        source=sum(budget.source for budget in budgets),
    )
