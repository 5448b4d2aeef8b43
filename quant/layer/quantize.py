"""Quantize one layer: run the recipe's method, time it, and turn what can go wrong into one sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch

from ..device import is_out_of_memory
from ..errors import LayerError
from ..parallel import crew
from ..recipe import AUTO
from .methods import ROUNDING_METHODS, quantize_with_best_scale
from .task import LayerTask, QuantizedLayer


def quantize_layer(task: LayerTask) -> QuantizedLayer:
    """Quantize a weight as its recipe says; the result lies on the task's device.

    Raises:
        LayerError: the weight holds NaN, infinity or values that overflow, or the device runs out of memory; the text
            names the layer.
        Cancelled: from ``task.check_cancelled``, which is called often.
    """
    started, method = time.perf_counter(), ROUNDING_METHODS[task.recipe.rounding]
    # A GPU is driven by one thread.
    threads = crew() if torch.device(task.device).type == "cpu" else nullcontext()
    with explain_failures(task.name, task.shape, task.device, task.recipe.rounding), threads:
        placed = replace(task, weight=task.weight.to(task.device))
        by_best = task.recipe.scale == AUTO
        result = quantize_with_best_scale(placed, method) if by_best else method(placed)
    return result.add_errors(seconds=time.perf_counter() - started)


@contextmanager
def explain_failures(name: str, shape: Sequence[int], device: torch.device | str, rounding: str) -> Iterator[None]:
    """Within the block, exhausted memory and failed matrix decompositions raise LayerError, which names the layer.

    Args:
        name: of the layer.
        shape: of its weight.
        device: on which it is worked on.
        rounding: the recipe's; the advice is to use less memory than that.
    """
    layer = f"Layer '{name}' ({' x '.join(map(str, shape))})"
    try:
        yield
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise LayerError(
            f"{layer} cannot be decomposed in float32: its weights or inputs are too large; keep it with exclude, or "
            "quantize with rounding 'nearest'."
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = "close other programs" if torch.device(device).type == "cpu" else "quantize on the CPU"
        second = "keep it with exclude" if rounding == "nearest" else "quantize with rounding 'nearest'"
        raise LayerError(f"{layer} does not fit in the memory of {device}; {first}, or {second}.") from None
