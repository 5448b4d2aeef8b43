"""The method `nearest`: codes, scales and weight errors in as few passes over a weight as possible."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..files.tensors import is_finite
from ..formats import Format, GroupedFormat, GroupScales, Scale, ScaledFormat, scales
from ..formats.granularity import PerBlock, PerTensor
from ..formats.weight_rows import WeightRows
from ..parallel import run_all
from ..rounding import round_nearest
from .histogram import find_amax, make_table
from .layer_errors import relative_error, square_sums
from .measurement import add_output_errors, make_result
from .operands import hold_out, load_input_rows, load_unchecked_block, load_weight, not_finite, row_blocks
from .task import LayerTask, QuantizedLayer
from .validator import Validator
from .workspace import Workspace

S = TypeVar("S", Tensor, GroupScales)


@dataclass(frozen=True, kw_only=True)
class RoundedWeight:
    """Codes, scales and sums of squares of one weight."""

    codes: Tensor
    """``[N, K]`` in the format's code dtype."""
    scale: Scale
    """As the format shapes it."""
    square_error: float
    """Sum over all weights of ``(W_q - W)^2``."""
    square: float
    """Sum over all weights of ``W^2``."""


def quantize_nearest(task: LayerTask) -> QuantizedLayer:
    """Round each weight to the nearest grid point, in blocks of rows, so that a layer needs little memory."""
    fmt = task.format
    rounded = _round(task, fmt)
    error = relative_error(rounded.square_error, rounded.square)
    result = make_result(task, rounded.codes, rounded.scale, error, error)
    rows = load_input_rows(task)
    if rows is None:
        return result
    validator = Validator(load_weight(task), hold_out(task, rows)[0])
    outputs = validator.measure(fmt.dequantize(rounded.codes, rounded.scale))
    return add_output_errors(result, outputs, outputs)


def _round(task: LayerTask, fmt: Format) -> RoundedWeight:
    if isinstance(fmt, GroupedFormat):
        return _round_groups(task, fmt)
    assert isinstance(fmt, ScaledFormat)
    return _round_by_table(task, fmt) if _has_table(task, fmt) else _round_by_blocks(task, fmt)


def _has_table(task: LayerTask, fmt: ScaledFormat) -> bool:
    """Whether codes depend on nothing but a weight's 16 bits, and the weight has enough values for a table to pay."""
    shared = isinstance(fmt.granularity, PerTensor) and task.recipe.scale == "absmax" and not task.group
    stored_alike = task.padded_shape == task.shape and task.weight.dtype in (torch.float16, torch.bfloat16)
    return shared and stored_alike and task.weight.device.type == "cpu" and task.weight.numel() >= 1 << 16


def _round_by_table(task: LayerTask, fmt: ScaledFormat) -> RoundedWeight:
    """Round all 65,536 possible weights once; a histogram of the weights gives scale and errors exactly."""
    weight = task.weight.contiguous().view(torch.uint16)
    codes = torch.empty(task.shape, dtype=fmt.code_dtype)
    counts, counting = torch.zeros(1 << 16, dtype=torch.int64), threading.Lock()
    workspace = Workspace(codes.device)

    def find_places(rows: slice) -> Tensor:
        return workspace.take("places", weight[rows].shape, torch.int32).copy_(weight[rows]).view(-1)

    def count(rows: slice) -> None:
        task.check_cancelled()
        some = torch.bincount(find_places(rows), minlength=1 << 16)
        with counting:
            counts.add_(some)

    def look_up(rows: slice) -> None:
        task.check_cancelled()
        stored = codes[rows].view(torch.uint8).view(-1)
        torch.index_select(table.codes.view(torch.uint8), 0, find_places(rows), out=stored)

    run_all(count, row_blocks(task))
    amax = find_amax(counts, task.weight.dtype)
    if not math.isfinite(amax):
        raise not_finite(task)
    scale = scales.from_amax(torch.tensor(amax), fmt)
    table = make_table(fmt, scale, task.weight.dtype)
    run_all(look_up, row_blocks(task))
    square_error, square = table.sum_squares(counts)
    return RoundedWeight(codes=codes, scale=scale, square_error=square_error, square=square)


def _round_by_blocks(task: LayerTask, fmt: ScaledFormat) -> RoundedWeight:
    shared = _find_tensor_scale(task, fmt) if isinstance(fmt.granularity, PerTensor) else None
    scale = task.weight.new_empty(fmt.granularity.scale_shape(task.padded_shape), dtype=torch.float32)
    height = fmt.granularity.rows
    workspace = Workspace(task.weight.device, keep=not isinstance(fmt.granularity, PerBlock))

    def find_scale(block: Tensor, rows: slice) -> Tensor:
        if shared is not None:
            return shared
        found = scale[rows.start // height : -(-rows.stop // height)]
        return found.copy_(fmt.find_scale(block, task.recipe.scale))

    return _round_rows(task, workspace, find_scale, lambda _: scale if shared is None else shared)


def _round_groups(task: LayerTask, fmt: GroupedFormat) -> RoundedWeight:
    """Rows share the codebook, or one channel scale, which are found first."""

    def load(rows: slice) -> Tensor:
        task.check_cancelled()
        return load_unchecked_block(task, rows, Workspace(task.weight.device))  # several are needed at a time

    if not is_finite(task.weight.to(torch.float32) if task.weight.dtype == torch.float64 else task.weight):
        raise not_finite(task)
    shared = fmt.find_shared(WeightRows(task.padded_shape, load, row_blocks(task)))

    def find_scale(block: Tensor, rows: slice) -> GroupScales:
        return fmt.find_row_scales(block, task.recipe.scale, shared)

    return _round_rows(task, Workspace(task.weight.device, keep=False), find_scale, GroupScales.join)


def _round_rows(
    task: LayerTask,
    workspace: Workspace,
    find_scale: Callable[[Tensor, slice], S],
    join: Callable[[Sequence[S]], Scale],
) -> RoundedWeight:
    """Round a weight block by block.

    Args:
        task: The layer.
        workspace: Buffers for blocks.
        find_scale: Finds the scale of a block, float32 ``[n, K]``, of these rows.
        join: Makes the scale of the weight from the scales of its blocks.
    """
    blocks = row_blocks(task)
    codes = torch.empty(task.padded_shape, dtype=task.format.code_dtype, device=task.weight.device)

    def round_block(rows: slice) -> tuple[S, Tensor]:
        task.check_cancelled()
        block = load_unchecked_block(task, rows, workspace)
        scale = find_scale(block, rows)
        values = workspace.take("values", block.shape)
        round_nearest(block, scale, task.format, (codes[rows], values))
        errors = values.sub_(block)
        return scale, torch.stack([square_sums(errors, workspace), square_sums(block, workspace)])

    found, sums = zip(*run_all(round_block, blocks), strict=True)
    # The only wait for a GPU.
    square_error, square = (math.fsum(values) for values in torch.cat(list(sums), dim=1).tolist())
    if not math.isfinite(square):
        load_weight(task)  # which raises if the weight is not finite
    return RoundedWeight(codes=codes, scale=join(found), square_error=square_error, square=square)


def _find_tensor_scale(task: LayerTask, fmt: ScaledFormat) -> Tensor:
    if task.recipe.scale != "absmax":
        return fmt.find_scale(load_weight(task), task.recipe.scale)
    workspace = Workspace(task.weight.device)

    def find_extremes(rows: slice) -> Tensor:
        return torch.stack(torch.aminmax(load_unchecked_block(task, rows, workspace)))

    return scales.from_amax(torch.stack(run_all(find_extremes, row_blocks(task))).abs().amax(), fmt)
