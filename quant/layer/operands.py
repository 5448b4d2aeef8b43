"""A task's weight and recorded input rows in the basis that the weight is stored in: float32, padded, rotated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..calibration.statistics import FEWEST_ROWS
from ..errors import LayerError
from ..files.tensors import is_finite
from ..formats.rotation import rotate
from ..notices import Notice, notice
from ..parallel import blocks, run_all
from .activations import InputRows
from .exact_rotation import GROUP, rotate_exactly
from .task import LayerTask
from .workspace import Workspace

CPU_BLOCK_ELEMENTS = 1 << 18
"""Weights are converted to float32 in blocks of rows of about this many elements: few enough that a block stays in a
core's own cache and a layer needs little memory beside its codes, enough that calling torch costs little."""
BLOCK_ELEMENTS = 1 << 20
"""The same for other devices, where a block is a launch of each kernel."""


def row_blocks(task: LayerTask) -> Sequence[slice]:
    """Divide the rows of the stored weight into blocks that share no scale, unless the whole weight does."""
    rows, columns = task.padded_shape
    unit = math.lcm(task.format.row_unit, task.format.padded[0])
    elements = CPU_BLOCK_ELEMENTS if task.weight.device.type == "cpu" else BLOCK_ELEMENTS
    return blocks(rows, max(unit, elements // columns // unit * unit))


def load_block(task: LayerTask, rows: slice, workspace: Workspace) -> Tensor:
    """Load rows of the weight, float32 ``[n, K]``, padded and rotated as the format stores them.

    The result is in a buffer, until the thread loads its next block.

    Raises:
        LayerError: the weight holds NaN, infinity, or float64 values that float32 cannot hold.
    """
    block = _load_padded(task, rows, workspace)
    if not _is_finite(block):
        raise not_finite(task)
    return _rotate(task, rows, block, workspace)


def load_unchecked_block(task: LayerTask, rows: slice, workspace: Workspace) -> Tensor:
    """As `load_block`, for callers that find NaN and infinity in a sum: asking here would wait for the GPU."""
    return _rotate(task, rows, _load_padded(task, rows, workspace), workspace)


def _load_padded(task: LayerTask, rows: slice, workspace: Workspace) -> Tensor:
    loaded = task.weight[rows]
    block = workspace.take("block", (rows.stop - rows.start, task.padded_shape[1]))
    if loaded.shape != block.shape:
        block.zero_()
    block[: loaded.shape[0], : loaded.shape[1]] = loaded
    return block


def _rotate(task: LayerTask, rows: slice, block: Tensor, workspace: Workspace) -> Tensor:
    stored = task.weight[rows]
    if not task.group:
        return block
    if task.group == GROUP and stored.dtype == torch.bfloat16 and _is_plain(stored, block):
        return rotate_exactly(stored, block, workspace)
    return rotate(block, task.group, out=workspace.take("rotated", block.shape))


def _is_plain(stored: Tensor, block: Tensor) -> bool:
    return stored.device.type == "cpu" and stored.shape == block.shape


def not_finite(task: LayerTask) -> LayerError:
    """The error of a weight that is not finite in float32."""
    if not is_finite(task.weight):
        return LayerError(
            f"Layer '{task.name}' holds NaN or infinite weights; the source file is damaged or not a weight."
        )
    largest = float(task.weight.abs().amax())
    return LayerError(
        f"Layer '{task.name}' holds weights of up to {largest:.3g}, more than float32 can hold; keep the layer with "
        "exclude, or repair the source file."
    )


def load_weight(task: LayerTask) -> Tensor:
    """The whole weight, float32 in `LayerTask.padded_shape`; errors as in `load_block`."""
    weight = task.weight.new_empty(task.padded_shape, dtype=torch.float32)
    workspace = Workspace(task.weight.device)

    def load(rows: slice) -> None:
        weight[rows] = load_block(task, rows, workspace)

    run_all(load, row_blocks(task))
    return weight


def load_input_rows(task: LayerTask) -> InputRows | None:
    """The recorded input rows on the weight's device, None if there are fewer than `FEWEST_ROWS`.

    Raises:
        LayerError: they hold NaN or infinity, which the recorder leaves out.
    """
    recorded = task.inputs.rows
    if recorded is None or not task.inputs.has_rows:
        return None
    rows = recorded.to(task.weight.device)
    if not _is_finite(rows):
        raise LayerError(f"The calibration of layer '{task.name}' holds NaN or infinite inputs; record it again.")
    return InputRows.prepare(
        rows,
        task.padded_shape[1],
        task.format,
        task.group,
        input_scale=task.input_scale,
        full_precision=task.weight_only or (task.full_precision and task.format.obeys_full_precision),
    )


def note_missing_rows(task: LayerTask, without: str, too_few: str) -> Notice:
    """A notice of the kind ``without`` if no rows were recorded, else of the kind ``too_few``."""
    if task.inputs.rows is None:
        return notice(without)
    return notice(too_few, rows=len(task.inputs.rows), needed=FEWEST_ROWS)


def hold_out(task: LayerTask, rows: InputRows) -> tuple[InputRows, InputRows]:
    """Held-out rows, which judge, and the rows to learn from."""
    return rows.split(task.recipe.calibrated.held_out)


def _is_finite(block: Tensor) -> bool:
    """Whether all values are finite; the extremes tell, without a mask as large as the block."""
    return block.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(block))).all())
