"""The method `nearest`: codes, scales and weight errors in as few passes over a weight as possible."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..formats import Format, GroupedFormat, GroupScales, Scale, ScaledFormat, scales
from ..formats.granularity import PerTensor
from ..formats.weight_rows import WeightRows
from ..parallel import run_all
from ..rounding import round_nearest
from .histogram import find_amax, make_table
from .layer_errors import relative_error, square_sums
from .measurement import add_output_errors, make_result
from .operands import hold_out, load_input_rows, load_unchecked_block, load_weight, not_finite, row_blocks
from .task import LayerTask, QuantizedLayer
from .validator import Validator

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

    def find_scale(block: Tensor) -> Tensor:
        return fmt.find_scale(block, task.recipe.scale) if shared is None else shared

    codes, found, sums = _round_rows(task, find_scale)
    scale = torch.cat(list(found)) if shared is None else shared
    return _sum_up(task, codes, scale, sums)


def _round_groups(task: LayerTask, fmt: GroupedFormat) -> RoundedWeight:
    """Rows share the codebook, or one channel scale, which are found first."""

    def load(rows: slice) -> Tensor:
        task.check_cancelled()
        return load_unchecked_block(task, rows)

    height, width = task.padded_shape
    shared = fmt.find_shared(WeightRows((height, width), load, row_blocks(task)))
    codes, found, sums = _round_rows(task, lambda block: fmt.find_row_scales(block, task.recipe.scale, shared))
    return _sum_up(task, codes, GroupScales.join(found), sums)


def _round_rows(task: LayerTask, find_scale: Callable[[Tensor], S]) -> tuple[Tensor, Sequence[S], Sequence[Tensor]]:
    """Round a weight block by block.

    Returns:
        Codes; the scale of each block; and sums of squares of each block's errors and weights, float64 ``[2, chunks]``.
    """
    codes = torch.empty(task.padded_shape, dtype=task.format.code_dtype, device=task.weight.device)

    def round_block(rows: slice) -> tuple[S, Tensor]:
        task.check_cancelled()
        block = load_unchecked_block(task, rows)
        scale = find_scale(block)
        codes[rows] = round_nearest(block, scale, task.format)
        errors = task.format.dequantize(codes[rows], scale).sub_(block)
        return scale, torch.stack([square_sums(errors), square_sums(block)])

    found, sums = zip(*run_all(round_block, row_blocks(task)), strict=True)
    return codes, found, sums


def _sum_up(task: LayerTask, codes: Tensor, scale: Scale, sums: Sequence[Tensor]) -> RoundedWeight:
    # The only wait for a GPU.
    square_error, square = (math.fsum(values) for values in torch.cat(list(sums), dim=1).tolist())
    if not math.isfinite(square):
        load_weight(task)  # which raises if the weight is not finite
    return RoundedWeight(codes=codes, scale=scale, square_error=square_error, square=square)


def _tensor_scale(task: LayerTask, fmt: ScaledFormat) -> Tensor:
    if task.recipe.scale != "absmax":
        return fmt.find_scale(load_weight(task), task.recipe.scale)
    extremes = run_all(lambda rows: torch.stack(torch.aminmax(load_unchecked_block(task, rows))), row_blocks(task))
    return scales.from_amax(torch.stack(extremes).abs().amax(), fmt)
