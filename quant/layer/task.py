"""One layer to quantize, and its result, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..calibration.statistics import NO_STATISTICS, InputStatistics
from ..formats import Format, Scale
from ..notices import Notice
from ..recipe import Recipe
from ..seeds import layer_seed
from .layer_errors import LayerErrors

CheckCancelled = Callable[[], None]
"""Called often; raises Cancelled when the user interrupts."""


@dataclass(frozen=True, kw_only=True)
class LayerTask:
    """One weight to quantize."""

    name: str
    """Full key without ``.weight``."""
    weight: Tensor
    """``[N, K]``, any floating dtype, any device."""
    format: Format
    group: int | None
    """Rotation group, None if the weight is not rotated."""
    recipe: Recipe
    inputs: InputStatistics = NO_STATISTICS
    """Statistics of the layer's inputs from a calibration."""
    input_scale: float | None = None
    """Static scale of the layer's inputs, written beside the weight; None: none is written."""
    full_precision: bool = False
    """ComfyUI is asked to dequantize the weight and multiply in 16 bits."""
    weight_only: bool = False
    """ComfyUI does so without being asked, whatever the format: text encoders."""
    device: torch.device | str = "cpu"
    """Device that computes."""
    check_cancelled: CheckCancelled = lambda: None

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def padded_shape(self) -> tuple[int, int]:
        """Shape of the codes."""
        return self.format.padded_shape(self.shape)

    @property
    def seed(self) -> int:
        return layer_seed(self.name, self.recipe.seed)


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """A quantized weight, on the device of its task."""

    codes: Tensor
    """The format's code dtype, `LayerTask.padded_shape`."""
    scale: Scale
    """As the format shapes it."""
    errors: LayerErrors
    output_power: float | None = None
    """Mean over held-out rows of ``||W x||^2``; None without recorded inputs."""
    output_squares: Tensor | None = None
    """Squared output error (W8A8) of each held-out row, float64 ``[R]``; None without recorded inputs."""
    notes: tuple[Notice, ...] = ()

    def add_errors(self, **errors: Any) -> QuantizedLayer:
        """The result with other fields of its `LayerErrors`."""
        return replace(self, errors=replace(self.errors, **errors))

    def add_notes(self, *notes: Notice) -> QuantizedLayer:
        return replace(self, notes=(*self.notes, *notes))
