"""Acceptance: each weight row keeps its learned codes only if they are significantly better than nearest on held-out
rows (3 standard errors).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import Format
from .validator import OutputErrors, Validator

STANDARD_ERRORS = 3.0
"""How far below nearest's the held-out error of a weight row must lie; a smaller gain could be chance."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The accepted codes of a layer and what they cost on held-out rows."""

    codes: Tensor
    """``[N, K]``, each row learned or nearest."""
    errors: OutputErrors
    nearest: OutputErrors
    """Output errors if every row were nearest."""
    nearest_rows: int
    """How many of the N rows are nearest."""


def accept(codes: Tensor, nearest: Tensor, scale: Tensor, fmt: Format, validator: Validator) -> Accepted:
    """Choose between learned and nearest codes for each weight row.

    The whole layer falls back to nearest if its output error (W8A8) would still be larger.

    Args:
        codes: learned codes, ``[N, K]``.
        nearest: nearest codes, ``[N, K]``.
        scale: float32, for both, as `Format` shapes it.
    """
    learned, plain = (fmt.dequantize(c, scale) for c in (codes, nearest))
    squares, plain_squares = (validator.squared_errors(dequantized) for dequantized in (learned, plain))
    better = significantly_lower(squares, plain_squares)
    before = validator.measure(plain, plain_squares)
    after = validator.measure(torch.where(better[:, None], learned, plain), torch.where(better, squares, plain_squares))
    if after.w8a8 > before.w8a8:
        better, after = torch.zeros_like(better), before
    # By bytes: `where` does not support every 8-bit float dtype.
    chosen = torch.where(better[:, None], codes.view(torch.uint8), nearest.view(torch.uint8)).view(codes.dtype)
    return Accepted(codes=chosen, errors=after, nearest=before, nearest_rows=int((~better).sum()))


def significantly_lower(squares: Tensor, others: Tensor) -> Tensor:
    """Mask ``[N]`` of the columns of ``squares [R, N]`` whose mean is significantly lower than in ``others`` (paired
    z-test, `STANDARD_ERRORS`).
    """
    difference = squares - others
    standard_error = difference.std(dim=0, correction=0) / len(difference) ** 0.5
    return difference.mean(dim=0).lt(-STANDARD_ERRORS * standard_error)
