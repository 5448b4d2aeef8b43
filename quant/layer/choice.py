"""Choosing between measured ways of storing a layer: scale methods, rotations, formats.

Held-out rows are a sample: of several equally good alternatives one seems best by chance. An alternative therefore
replaces the default only if its output error (W8A8) is significantly smaller on the same held-out rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .acceptance import significantly_lower
from .task import QuantizedLayer

FEWEST_HELD_OUT = 32
"""With fewer held-out rows their spread is too uncertain for a z-test, and the default stays."""


@dataclass(frozen=True)
class Alternative:
    """How well a layer is stored in one way."""

    error: float
    """`LayerErrors.primary`."""
    squares: Tensor | None
    """Squared output error of each held-out row, float64 ``[R]`` on the CPU; None: `error` is the weight's."""

    @classmethod
    def of(cls, result: QuantizedLayer) -> Alternative:
        squares = result.output_squares
        return cls(result.errors.primary.error, None if squares is None else squares.cpu())


def choose_alternative(alternatives: Sequence[Alternative]) -> int:
    """Choose the default or an alternative that is significantly better on held-out rows.

    Args:
        alternatives: At least one, all measured on the same rows; the first is the default.

    Returns:
        The index of the smallest error among the default and all that are significantly better. Weight errors are no
        sample: the smallest one is chosen where nothing else was measured.
    """
    default = alternatives[0].squares
    if default is None:
        better = list(range(len(alternatives)))
    elif len(default) < FEWEST_HELD_OUT:
        better = [0]
    else:
        better = [0, *(i for i, other in enumerate(alternatives) if i and _is_better(other.squares, default))]
    return min(better, key=lambda index: alternatives[index].error)


def _is_better(squares: Tensor | None, default: Tensor) -> bool:
    """Paired z-test; the standard errors that it asks for are `acceptance.STANDARD_ERRORS`."""
    return squares is not None and bool(significantly_lower(squares[:, None], default[:, None]))
