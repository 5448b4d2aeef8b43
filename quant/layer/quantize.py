"""Quantize one layer: run the recipe's method, time it, and turn what can go wrong into one sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..device import is_out_of_memory
from ..errors import LayerError
from ..notices import notice
from ..parallel import crew
from ..recipe import AUTO
from .memory import fits, peak_bytes
from .methods import ROUNDING_METHODS, quantize_with_best_scale
from .task import LayerTask, QuantizedLayer


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
        with explain_failures(task.name, task.shape, "cpu", task.recipe.rounding), crew():
            result = _quantize(replace(task, device="cpu"))
        if not on_cpu:
            result = result.add_notes(notice("computed_on_cpu", device=str(task.device)))
    return result.add_errors(seconds=time.perf_counter() - started)


def _quantize_on_device(task: LayerTask) -> QuantizedLayer | None:
    """The result of one thread on the task's own device; None if its memory does not suffice."""
    if not fits(peak_bytes(task.padded_shape, task.recipe, task.inputs, task.format), torch.device(task.device)):
        return None
    with explain_failures(task.name, task.shape, task.device, task.recipe.rounding):
        try:
            return _quantize(task)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
    return None


def _quantize(task: LayerTask) -> QuantizedLayer:
    method = ROUNDING_METHODS[task.recipe.rounding]
    placed = replace(task, weight=task.weight.to(task.device))
    return quantize_with_best_scale(placed, method) if task.recipe.scale == AUTO else method(placed)


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
