"""Rounding of 16-bit weights that share one scale: there are only 65,536 of them, so each is rounded once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import Format
from ..rounding import round_nearest


@dataclass(frozen=True)
class RoundingTable:
    """What each 16-bit pattern is rounded to. Patterns of infinity and NaN have entries without meaning."""

    values: Tensor
    """float32 ``[65536]``: the weight of each pattern."""
    codes: Tensor
    """``[65536]`` in the grid's dtype: its code."""
    rounded: Tensor
    """float32 ``[65536]``: the weight that the code stands for."""

    def sum_squares(self, counts: Tensor) -> tuple[float, float]:
        """Sum the squared errors and the squares of weights.

        Args:
            counts: int64 ``[65536]``: how many weights have each pattern.
        """
        present = counts > 0
        # The difference is taken in float32, as blocks of weights take it.
        errors, values = ((x[present].double()) for x in (self.rounded - self.values, self.values))
        times = counts[present].double()
        return float((errors.square_() * times).sum()), float((values.square_() * times).sum())


def make_table(fmt: Format, scale: Tensor, dtype: torch.dtype) -> RoundingTable:
    """Round every value of a 16-bit dtype to a format whose weights share ``scale``."""
    values = _all_values(dtype)
    codes = round_nearest(values[None], scale, fmt)
    return RoundingTable(values, codes[0], fmt.dequantize(codes, scale)[0])


def find_amax(counts: Tensor, dtype: torch.dtype) -> float:
    """Find the largest magnitude among weights of a 16-bit dtype; NaN if one of them is NaN.

    Args:
        counts: int64 ``[65536]``: how many weights have each pattern.
        dtype: float16 or bfloat16.
    """
    return float(_all_values(dtype)[counts > 0].abs().amax()) if bool(counts.any()) else 0.0


def _all_values(dtype: torch.dtype) -> Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype).to(torch.float32)
