"""A task's weight and recorded input rows in the basis that the weight is stored in: float32, padded, rotated."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import LayerError
from ..formats.rotation import rotate
from .activations import InputRows
from .task import LayerTask

BLOCK_ELEMENTS = 1 << 20
"""Weights are converted to float32 in blocks of rows of about this many elements: few enough that a block stays in the
processor's cache and a layer needs little memory beside its codes, enough that threads pay off."""

FEWEST_ROWS = 8
"""A sample of fewer input rows is ignored."""


def load_blocks(task: LayerTask) -> Iterator[Tensor]:
    """Yield the weight in blocks of rows, float32 ``[n, K]``, padded and rotated as the format stores them.

    Raises:
        LayerError: the weight holds NaN or infinity, or values so large that the rotation overflows.
    """
    weight, fmt = task.weight, task.format
    rows, columns = task.padded_shape
    unit = math.lcm(fmt.row_unit, fmt.padded[0])
    height = max(unit, BLOCK_ELEMENTS // columns // unit * unit)
    for start in range(0, rows, height):
        block = weight[start : start + height].to(torch.float32)
        if not _is_finite(block):
            raise LayerError(
                f"Layer '{task.name}' holds NaN or infinite weights; the source file is damaged or not a weight."
            )
        missing = (0, columns - block.shape[1], 0, min(height, rows - start) - block.shape[0])
        block = torch.nn.functional.pad(block, missing) if any(missing) else block
        yield rotate(block, task.group) if task.group else block


def load_weight(task: LayerTask) -> Tensor:
    """The whole weight, float32 in `LayerTask.padded_shape`; errors as in `load_blocks`."""
    return torch.cat(list(load_blocks(task)))


def load_input_rows(task: LayerTask) -> InputRows | None:
    """The recorded input rows on the weight's device, None if there are fewer than `FEWEST_ROWS`."""
    recorded = task.inputs.rows
    if recorded is None or len(recorded) < FEWEST_ROWS:
        return None
    rows = recorded.to(task.weight.device)
    return InputRows.prepare(
        rows,
        task.padded_shape[1],
        task.format,
        task.group,
        input_scale=task.input_scale,
        full_precision=task.full_precision and task.format.obeys_full_precision,
    )


def hold_out(task: LayerTask, rows: InputRows) -> tuple[InputRows, InputRows]:
    """Held-out rows, which judge, and the rows to learn from."""
    return rows.split(task.recipe.calibrated.held_out)


def _is_finite(block: Tensor) -> bool:
    """Whether all values are finite; the extremes tell, without a mask as large as the block."""
    return block.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(block))).all())
