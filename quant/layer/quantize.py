"""Quantize one layer: run the recipe's method, time it, and turn what can go wrong into one sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..errors import LayerError
from ..notices import notice
from ..parallel import crew
from ..recipe import AUTO
from .memory import fits, peak_bytes
from .methods import ROUNDING_METHODS, quantize_with_best_scale
from .task import LayerTask, QuantizedLayer

OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of PyTorch's messages where exhausted memory is only a RuntimeError."""


def quantize_layer(task: LayerTask) -> QuantizedLayer:
    """Quantize a weight as its recipe says.

    Returns:
        The result, on the task's device. A layer that does not fit in its memory is quantized on the CPU, and a notice
        says so.

    Raises:
        LayerError: the weight holds NaN, infinity or values that overflow, or the memory is exhausted; the text names
            the layer.
        Cancelled: from ``task.check_cancelled``, which is called often.
    """
    started, on_cpu = time.perf_counter(), torch.device(task.device).type == "cpu"
    result = None if on_cpu else _quantize_on_device(task)
    if result is None:
        with explain_failures(task.name, task.shape, "cpu"), crew():
            result = _quantize(replace(task, device="cpu"))
        if not on_cpu:
            result = result.add_notes(notice("computed_on_cpu", device=str(task.device)))
    return result.add_errors(seconds=time.perf_counter() - started)


def _quantize_on_device(task: LayerTask) -> QuantizedLayer | None:
    """The result of one thread on the task's own device; None if its memory does not suffice."""
    if not fits(peak_bytes(task.padded_shape, task.recipe, task.inputs), torch.device(task.device)):
        return None
    with explain_failures(task.name, task.shape, task.device):
        try:
            return _quantize(task)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
    return None


def _quantize(task: LayerTask) -> QuantizedLayer:
    method = ROUNDING_METHODS[task.recipe.rounding]
    placed = replace(task, weight=task.weight.to(task.device))
    return quantize_with_best_scale(placed, method) if task.recipe.scale == AUTO else method(placed)


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
