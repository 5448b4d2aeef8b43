"""One layer: rotate, scale, round, and measure what it cost."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import scales
from .errors import LayerError
from .formats import Format
from .granularity import PerTensor
from .recipe import Recipe
from .rotation import rotate
from .rounding import FEWEST_ROWS, round_calibrated, round_nearest, round_svd
from .statistics import NOTHING_KNOWN, InputStatistics

BLOCK_ELEMENTS = 1 << 20
"""Weights are taken to float32 in blocks of rows of about this many elements: so few that a block stays in the
processor's cache from one step to the next and a layer costs little beside itself, so many that threads pay off."""

Tick = Callable[[], None]


@dataclass(frozen=True)
class QuantizedLayer:
    """codes (padded shape) and float32 scale as `Format` shapes them; error: ||W_q - W|| / ||W||, 0 for a zero weight.

    projected and projected_nearest: the relative error on the leading singular directions, where `svd` rounded, and
    what nearest leaves there. output and output_nearest: the relative error of the output on held-out inputs, where
    `calibrated` rounded, and nearest's. given_back: the method was not better than nearest anywhere, so nearest it is.
    """

    codes: Tensor
    scale: Tensor
    error: float
    projected: float | None = None
    projected_nearest: float | None = None
    output: float | None = None
    output_nearest: float | None = None
    given_back: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One weight ``[N, K]`` to quantize, of any floating dtype, and what is known of its inputs."""

    name: str
    weight: Tensor
    format: Format
    group: int | None
    recipe: Recipe
    inputs: InputStatistics = NOTHING_KNOWN
    device: torch.device | str = "cpu"
    tick: Tick = lambda: None


def quantize_layer(task: Task) -> QuantizedLayer:
    """Quantize a weight as its recipe says; the result lies on the task's device.

    ``tick`` is called often and may raise to stop. Raises LayerError naming the layer for NaN or infinite weights, and
    where the device's memory does not suffice.
    """
    try:
        return _METHODS[task.recipe.rounding](replace(task, weight=task.weight.to(task.device)))
    except torch.cuda.OutOfMemoryError:
        rows, columns = task.weight.shape
        raise LayerError(
            f"Layer '{task.name}' ({rows} x {columns}) does not fit in the memory of {task.device}; "
            "quantize on the CPU, or with rounding 'nearest'."
        ) from None


def dequantize_layer(codes: Tensor, scale: Tensor, fmt: Format, group: int | None, shape: tuple[int, int]) -> Tensor:
    """float32 ``[N, K]`` in the basis of the inputs, padding removed."""
    weight = fmt.dequantize(codes, scale)
    return (rotate(weight, group) if group else weight)[: shape[0], : shape[1]]


def _nearest(task: Task) -> QuantizedLayer:
    fmt, method = task.format, scales.METHODS[task.recipe.scale]
    shared = _tensor_scale(task) if isinstance(fmt.granularity, PerTensor) else None
    codes = torch.empty(_padded_shape(task), dtype=fmt.grid.dtype, device=task.weight.device)
    found, start, square_error, square = [], 0, 0.0, 0.0
    for block in _float_blocks(task):
        task.tick()
        scale = method(block, fmt) if shared is None else shared
        code = round_nearest(block, scale, fmt)
        square_error += float(fmt.dequantize(code, scale).sub_(block).square_().sum())
        square += float(block.square().sum())
        codes[start : start + code.shape[0]] = code
        start += code.shape[0]
        found.append(scale)
    return QuantizedLayer(codes, torch.cat(found) if shared is None else shared, _ratio(square_error, square))


def _svd(task: Task) -> QuantizedLayer:
    full = torch.cat(list(_float_blocks(task)))
    scale = scales.METHODS[task.recipe.scale](full, task.format)
    seed = layer_seed(task.name, task.recipe.seed)
    found = round_svd(full, scale, task.format, task.recipe.svd, task.tick, seed=seed)
    return QuantizedLayer(
        found.codes,
        scale,
        _weight_error(found.codes, scale, full, task.format),
        projected=found.error,
        projected_nearest=found.nearest_error,
        given_back=found.given_back,
    )


def _calibrated(task: Task) -> QuantizedLayer:
    rows = task.inputs.rows
    if rows is None or len(rows) < FEWEST_ROWS:
        return replace(_nearest(task), notes=("rounded to nearest: no inputs were recorded",))
    full = torch.cat(list(_float_blocks(task)))
    scale = scales.METHODS[task.recipe.scale](full, task.format)
    inputs = _stored_inputs(rows.to(full.device, torch.float32), full.shape[1], task.group)
    found = round_calibrated(full, scale, task.format, inputs, task.recipe.calibrated, task.tick)
    kept = found.rows_given_back
    return QuantizedLayer(
        found.codes,
        scale,
        _weight_error(found.codes, scale, full, task.format),
        output=found.error,
        output_nearest=found.nearest_error,
        given_back=kept == len(full),
        notes=(f"{kept} of {len(full)} rows kept nearest",) if 0 < kept < len(full) else (),
    )


_METHODS: Mapping[str, Callable[[Task], QuantizedLayer]] = {
    "nearest": _nearest,
    "svd": _svd,
    "calibrated": _calibrated,
}


def _stored_inputs(inputs: Tensor, width: int, group: int | None) -> Tensor:
    """Inputs in the basis that the weight is stored in: padded to its ``width`` and rotated as it is."""
    padded = torch.nn.functional.pad(inputs, (0, width - inputs.shape[1]))
    return rotate(padded.contiguous(), group) if group else padded


def _weight_error(codes: Tensor, scale: Tensor, weight: Tensor, fmt: Format) -> float:
    square_error = float(fmt.dequantize(codes, scale).sub_(weight).square_().sum(dtype=torch.float64))
    return _ratio(square_error, float(weight.square().sum(dtype=torch.float64)))


def layer_seed(name: str, seed: int) -> int:
    """A seed of its own for each layer, whatever the order in which they are done."""
    return zlib.crc32(name.encode()) ^ seed


def _float_blocks(task: Task) -> Iterator[Tensor]:
    """Rows of the weight as float32, padded and rotated as the format stores them, and checked to be finite."""
    weight, fmt = task.weight, task.format
    rows, columns = _padded_shape(task)
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


def _tensor_scale(task: Task) -> Tensor:
    if task.recipe.scale == "absmax":
        extremes = [torch.stack(torch.aminmax(block)) for block in _float_blocks(task)]
        return scales.from_amax(torch.stack(extremes).abs().amax(), task.format)
    return scales.METHODS[task.recipe.scale](torch.cat(list(_float_blocks(task))), task.format)


def _padded_shape(task: Task) -> tuple[int, int]:
    return task.format.padded_shape((task.weight.shape[0], task.weight.shape[1]))


def _ratio(square_error: float, square: float) -> float:
    return math.sqrt(square_error / square) if square > 0 else 0.0
