"""Acceptance: each weight row keeps its learned codes only if they are significantly better than nearest on held-out
rows (3 standard errors).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import Format, GroupScales, Scale
from .validator import OutputErrors, Validator

STANDARD_ERRORS = 3.0
"""How far below nearest's the held-out error of a weight row must lie; a smaller gain could be chance."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The accepted codes of a layer and what they cost on held-out rows."""

    codes: Tensor
    """``[N, K]``, each row learned or nearest."""
    scale: Scale
    """Of these codes."""
    errors: OutputErrors
    nearest: OutputErrors
    """Output errors if every row were nearest."""
    nearest_rows: int
    """How many of the N rows are nearest."""


@dataclass(frozen=True)
class Rounded:
    """Codes and their scales."""

    codes: Tensor
    """``[N, K]``."""
    scale: Scale
    """As the format shapes it."""


def accept(learned: Rounded, nearest: Rounded, fmt: Format, validator: Validator) -> Accepted:
    """Choose between learned and nearest codes for each weight row, with their scales.

    The whole layer falls back to nearest if its output error (W8A8) would still be larger.
    """
    weight, plain = (fmt.dequantize(r.codes, r.scale) for r in (learned, nearest))
    squares, plain_squares = (validator.squared_errors(dequantized) for dequantized in (weight, plain))
    better = significantly_lower(squares, plain_squares)
    before = validator.measure(plain, plain_squares)
    after = validator.measure(torch.where(better[:, None], weight, plain), torch.where(better, squares, plain_squares))
    if after.w8a8 > before.w8a8:
        better, after = torch.zeros_like(better), before
    # By bytes: `where` does not support every 8-bit float dtype.
    codes = torch.where(better[:, None], learned.codes.view(torch.uint8), nearest.codes.view(torch.uint8))
    return Accepted(
        codes=codes.view(learned.codes.dtype),
        scale=_choose_scale(better, learned.scale, nearest.scale),
        errors=after,
        nearest=before,
        nearest_rows=int((~better).sum()),
    )


def _choose_scale(rows: Tensor, learned: Scale, nearest: Scale) -> Scale:
    """Learned scales for a mask of rows; scales of one level are never learned, so that both are the same."""
    if isinstance(learned, GroupScales) and isinstance(nearest, GroupScales):
        return learned.where(rows, nearest)
    return nearest


def significantly_lower(squares: Tensor, others: Tensor) -> Tensor:
    """Mask ``[N]`` of the columns of ``squares [R, N]`` whose mean is significantly lower than in ``others`` (paired
    z-test, `STANDARD_ERRORS`).
    """
    difference = squares - others
    standard_error = difference.std(dim=0, correction=0) / len(difference) ** 0.5
    return difference.mean(dim=0).lt(-STANDARD_ERRORS * standard_error)
