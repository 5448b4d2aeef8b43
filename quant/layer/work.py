"""The work of a layer, by which layers are divided among ranks.

In multiply-adds of large products, for a weight ``[N, K]`` and R recorded rows:

    weights * N K + rows * R N K + squares * K^2 (N + R + K / 3)

The last term is LDLQ, the Hessian and its Cholesky factor. `Work` has the factors of each rounding method. They are
ratios of times on one thread of a CPU (2,048 x 2,048, 2,048 rows); only the balance depends on them, no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..calibration.statistics import NO_STATISTICS, InputStatistics
from ..recipe import Recipe
from .memory import name_method

COPIED_BYTE = HASHED_BYTE = 10.0
"""Work of a byte that is read, and written as it is or hashed."""


@dataclass(frozen=True)
class Work:
    """Factors of the formula."""

    weights: float
    rows: float = 0.0
    squares: float = 0.0


WORK: Mapping[str, Work] = {
    "nearest": Work(weights=40.0),
    "nearest, measured": Work(weights=40.0, rows=0.2),
    "calibrated": Work(weights=40.0, rows=0.2, squares=1.0),
    "svd": Work(weights=2000.0),
    "svd, torch optimizer": Work(weights=2000.0),
    "svd, feedback": Work(weights=40.0, rows=0.2, squares=1.0),
}


def estimate_work(shape: tuple[int, int], recipe: Recipe, inputs: InputStatistics = NO_STATISTICS) -> float:
    """The work of quantizing a weight ``[N, K]`` once.

    Args:
        shape: of the weight.
        recipe: the settings.
        inputs: what a calibration knows of the layer's inputs.
    """
    height, width = shape
    rows = 0 if inputs.rows is None else len(inputs.rows)
    work = WORK[name_method(recipe, rows > 0)]
    by_weight = (work.weights + work.rows * rows) * height * width
    return by_weight + work.squares * width**2 * (height + rows + width / 3)
