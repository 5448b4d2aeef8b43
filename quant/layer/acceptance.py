"""The choice between two roundings, by inputs that neither was learned from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import Format
from .output_error import OutputError, Validator, significantly_lower


@dataclass(frozen=True)
class Choice:
    """codes ``[N, K]``; the error of the output on held-out inputs, with these codes and with the nearest ones.

    rows_fell_back: rows of the weight that took the nearest codes.
    """

    codes: Tensor
    output: OutputError
    nearest: OutputError
    rows_fell_back: int


def keep_better(codes: Tensor, nearest: Tensor, scale: Tensor, fmt: Format, validator: Validator) -> Choice:
    """``codes [N, K]`` where they are surely better on held-out inputs, else ``nearest``, for each row of the weight.

    Nearest everywhere if the layer as run would still be worse.
    """
    found, rounded = (fmt.dequantize(c, scale) for c in (codes, nearest))
    better = significantly_lower(validator.squares(found), validator.squares(rounded))
    before = validator.error(rounded)
    after = validator.error(torch.where(better[:, None], found, rounded))
    if after.w8a8 > before.w8a8:
        better, after = torch.zeros_like(better), before
    # Selecting by bytes, as not every 8-bit float dtype can be selected by `where`.
    kept = torch.where(better[:, None], codes.view(torch.uint8), nearest.view(torch.uint8)).view(codes.dtype)
    return Choice(kept, after, before, int((~better).sum()))
