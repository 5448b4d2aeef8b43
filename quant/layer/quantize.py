"""One layer: rotate, scale, round, and measure what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..errors import LayerError
from ..recipe import AUTO
from .methods import ROUNDING_METHODS, best_scale
from .task import QuantizedLayer, Task


def quantize_layer(task: Task) -> QuantizedLayer:
    """Quantize a weight as its recipe says; the result lies on the task's device.

    Raises:
        LayerError: the weight holds NaN or infinity, or the device runs out of memory; the text names the layer.
        Cancelled: from ``task.check_cancelled``, which is called often.
    """
    method, (rows, columns) = ROUNDING_METHODS[task.recipe.rounding], task.weight.shape
    with fitting(task.name, (rows, columns), task.device):
        placed = replace(task, weight=task.weight.to(task.device))
        return best_scale(placed, method) if task.recipe.scale == AUTO else method(placed)


@contextmanager
def fitting(name: str, shape: tuple[int, int], device: torch.device | str) -> Iterator[None]:
    """Raises LayerError naming the layer at hand where the device's memory does not suffice for what is inside."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise LayerError(
            f"Layer '{name}' ({shape[0]} x {shape[1]}) does not fit in the memory of {device}; "
            "quantize on the CPU, or with rounding 'nearest'."
        ) from None
