"""The method `nearest`: codes, scales and weight errors in as few passes over a weight as possible."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import ScaledFormat, scales
from ..formats.granularity import PerTensor
from ..parallel import run_all
from ..rounding import round_nearest
from .histogram import find_amax, make_table
from .layer_errors import relative_error, square_sums
from .measurement import Measurement, add_output_errors, make_result
from .operands import hold_out, load_input_rows, load_unchecked_block, load_weight, not_finite, row_blocks
from .task import LayerTask, QuantizedLayer
from .validator import Validator


@dataclass(frozen=True, kw_only=True)
class RoundedWeight:
    """Codes, scales and sums of squares of one weight."""

    codes: Tensor
    """``[N, K]`` in the format's code dtype."""
    scale: Tensor
    """float32, as the format shapes it."""
    square_error: float
    """Sum over all weights of ``(W_q - W)^2``."""
    square: float
    """Sum over all weights of ``W^2``."""


def quantize_nearest(task: LayerTask) -> QuantizedLayer:
    """Round each weight to the nearest grid point.

    Formats of one level of scales work in blocks of rows, so that a layer needs little memory.
    """
    fmt = task.format
    if not isinstance(fmt, ScaledFormat):
        return _quantize_whole(task)
    rounded = _round_by_table(task, fmt) if _has_table(task, fmt) else _round_by_blocks(task, fmt)
    error = relative_error(rounded.square_error, rounded.square)
    result = make_result(task, rounded.codes, rounded.scale, error, error)
    rows = load_input_rows(task)
    if rows is None:
        return result
    validator = Validator(load_weight(task), hold_out(task, rows)[0])
    outputs = validator.measure(fmt.dequantize(rounded.codes, rounded.scale))
    return add_output_errors(result, outputs, outputs)


def _quantize_whole(task: LayerTask) -> QuantizedLayer:
    task.check_cancelled()
    measurement = Measurement.prepare(task, load_input_rows(task))
    return measurement.measure(measurement.nearest)


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

    def count(rows: slice) -> None:
        task.check_cancelled()
        some = torch.bincount(_places(weight[rows]), minlength=1 << 16)
        with counting:
            counts.add_(some)

    def look_up(rows: slice) -> None:
        task.check_cancelled()
        stored = codes[rows].view(torch.uint8).view(-1)
        torch.index_select(table.codes.view(torch.uint8), 0, _places(weight[rows]), out=stored)

    run_all(count, row_blocks(task))
    amax = find_amax(counts, task.weight.dtype)
    if not math.isfinite(amax):
        raise not_finite(task)
    scale = scales.from_amax(torch.tensor(amax), fmt)
    table = make_table(fmt, scale, task.weight.dtype)
    run_all(look_up, row_blocks(task))
    square_error, square = table.sum_squares(counts)
    return RoundedWeight(codes=codes, scale=scale, square_error=square_error, square=square)


def _places(weight: Tensor) -> Tensor:
    return weight.reshape(-1).to(torch.int32)


def _round_by_blocks(task: LayerTask, fmt: ScaledFormat) -> RoundedWeight:
    shared = _tensor_scale(task, fmt) if isinstance(fmt.granularity, PerTensor) else None
    codes = torch.empty(task.padded_shape, dtype=fmt.code_dtype, device=task.weight.device)

    def round_block(rows: slice) -> tuple[Tensor, Tensor]:
        task.check_cancelled()
        block = load_unchecked_block(task, rows)
        scale = fmt.find_scale(block, task.recipe.scale) if shared is None else shared
        codes[rows] = round_nearest(block, scale, fmt)
        errors = fmt.dequantize(codes[rows], scale).sub_(block)
        return scale, torch.stack([square_sums(errors), square_sums(block)])

    block_scales, block_sums = zip(*run_all(round_block, row_blocks(task)), strict=True)
    scale = torch.cat(block_scales) if shared is None else shared
    # The only wait for a GPU.
    square_error, square = (math.fsum(sums) for sums in torch.cat(block_sums, dim=1).tolist())
    if not math.isfinite(square):
        load_weight(task)  # which raises if the weight is not finite
    return RoundedWeight(codes=codes, scale=scale, square_error=square_error, square=square)


def _tensor_scale(task: LayerTask, fmt: ScaledFormat) -> Tensor:
    if task.recipe.scale != "absmax":
        return fmt.find_scale(load_weight(task), task.recipe.scale)
    extremes = run_all(lambda rows: torch.stack(torch.aminmax(load_unchecked_block(task, rows))), row_blocks(task))
    return scales.from_amax(torch.stack(extremes).abs().amax(), fmt)
