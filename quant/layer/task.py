"""One layer's work as a value: the weight, how to quantize it, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration.statistics import NOTHING_KNOWN, InputStatistics
from ..formats import Format
from ..recipe import Recipe
from ..seeds import layer_seed
from .output_error import OutputError

CheckCancelled = Callable[[], None]


@dataclass(frozen=True)
class QuantizedLayer:
    """codes (padded shape) and float32 scale as `Format` shapes them; error: ||W_q - W|| / ||W||, 0 for a zero weight.

    projected and projected_nearest: the relative error on the leading singular directions, where `svd` rounded, and
    what nearest leaves there. output and output_nearest: the error of the output on inputs that nothing was learned
    from, where inputs are known, and nearest's. fell_back: the method was not better than nearest anywhere, so nearest
    it is.
    """

    codes: Tensor
    scale: Tensor
    error: float
    projected: float | None = None
    projected_nearest: float | None = None
    output: OutputError | None = None
    output_nearest: OutputError | None = None
    fell_back: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One weight ``[N, K]`` to quantize, of any floating dtype, and what is known of its inputs."""

    name: str
    weight: Tensor
    format: Format
    group: int | None
    recipe: Recipe
    inputs: InputStatistics = NOTHING_KNOWN
    device: torch.device | str = "cpu"
    check_cancelled: CheckCancelled = lambda: None

    @property
    def padded_shape(self) -> tuple[int, int]:
        return self.format.padded_shape((self.weight.shape[0], self.weight.shape[1]))

    @property
    def seed(self) -> int:
        return layer_seed(self.name, self.recipe.seed)
