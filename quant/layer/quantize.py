"""Quantize one layer: run the recipe's method, time it, and turn what can go wrong into one sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch

from ..errors import LayerError
from ..parallel import crew
from ..recipe import AUTO
from .methods import ROUNDING_METHODS, quantize_with_best_scale
from .task import LayerTask, QuantizedLayer

OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of PyTorch's messages where exhausted memory is only a RuntimeError."""


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
    with explain_failures(task.name, task.shape, task.device), threads:
        placed = replace(task, weight=task.weight.to(task.device))
        by_best = task.recipe.scale == AUTO
        result = quantize_with_best_scale(placed, method) if by_best else method(placed)
    return result.add_errors(seconds=time.perf_counter() - started)


@contextmanager
def explain_failures(name: str, shape: tuple[int, int], device: torch.device | str) -> Iterator[None]:
    """Within the block, exhausted memory and failed matrix decompositions raise LayerError, which names the layer."""
    try:
        yield
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise LayerError(
            f"Layer '{name}' ({shape[0]} x {shape[1]}) cannot be decomposed in float32: its weights or inputs are too "
            "large; keep it with exclude, or quantize with rounding 'nearest'."
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        way_out = "close other programs" if torch.device(device).type == "cpu" else "quantize on the CPU"
        raise LayerError(
            f"Layer '{name}' ({shape[0]} x {shape[1]}) does not fit in the memory of {device}; {way_out}, or quantize "
            "with rounding 'nearest'."
        ) from None


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(
        part in str(error) for part in OUT_OF_MEMORY
    )
