"""A task's weight and its inputs as the format stores them: float32, padded, rotated."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import LayerError
from ..formats.rotation import rotate
from .activations import Inputs, inputs_of
from .task import Task

BLOCK_ELEMENTS = 1 << 20
"""Weights are taken to float32 in blocks of rows of about this many elements: so few that a block stays in the
processor's cache from one step to the next and a layer costs little beside itself, so many that threads pay off."""

FEWEST_ROWS = 8
"""Fewer input rows than this are no sample: as if no inputs were known."""


def float_blocks(task: Task) -> Iterator[Tensor]:
    """Rows of the weight as float32, padded and rotated as the format stores them, and checked to be finite.

    Raises LayerError for NaN or infinite weights.
    """
    weight, fmt = task.weight, task.format
    rows, columns = task.padded_shape
    unit = math.lcm(fmt.granularity.rows, fmt.padded[0])
    height = max(unit, BLOCK_ELEMENTS // columns // unit * unit)
    for start in range(0, rows, height):
        block = weight[start : start + height].to(torch.float32)
        if block.numel() and not torch.isfinite(torch.stack(torch.aminmax(block))).all():
            raise LayerError(
                f"Layer '{task.name}' holds NaN or infinite weights; the source file is damaged or not a weight."
            )
        missing = (0, columns - block.shape[1], 0, min(height, rows - start) - block.shape[0])
        block = torch.nn.functional.pad(block, missing) if any(missing) else block
        yield rotate(block, task.group) if task.group else block


def float_weight(task: Task) -> Tensor:
    """The whole weight as `float_blocks` gives it."""
    return torch.cat(list(float_blocks(task)))


def known_inputs(task: Task) -> Inputs | None:
    """The recorded inputs on the weight's device, None if there are too few."""
    known = task.inputs
    if known.rows is None or len(known.rows) < FEWEST_ROWS:
        return None
    rows = known.rows.to(task.weight.device)
    return inputs_of(rows, task.padded_shape[1], task.format, task.group, known.absmax)
