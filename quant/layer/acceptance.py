"""The choice between two roundings, by inputs that neither was learned from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import Format
from .output_error import Judge, OutputError, surely_less


@dataclass(frozen=True)
class Choice:
    """codes ``[N, K]``; the error of the output on held-out inputs, with these codes and with the nearest ones.

    rows_given_back: rows of the weight that took the nearest codes.
    """

    codes: Tensor
    output: OutputError
    nearest: OutputError
    rows_given_back: int


def keep_better(codes: Tensor, nearest: Tensor, scale: Tensor, fmt: Format, judge: Judge) -> Choice:
    """``codes [N, K]`` where they are surely better on held-out inputs, else ``nearest``, for each row of the weight.

    Nearest everywhere if the layer as run would still be worse.
    """
    found, rounded = (fmt.dequantize(c, scale) for c in (codes, nearest))
    better = surely_less(judge.squares(found), judge.squares(rounded))
    before = judge.error(rounded)
    after = judge.error(torch.where(better[:, None], found, rounded))
    if after.as_run > before.as_run:
        better, after = torch.zeros_like(better), before
    # Selecting by bytes, as not every 8-bit float dtype can be selected by `where`.
    kept = torch.where(better[:, None], codes.view(torch.uint8), nearest.view(torch.uint8)).view(codes.dtype)
    return Choice(kept, after, before, int((~better).sum()))
