"""The rounding methods of a layer: each finds scales and codes and measures them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..formats import ScaledFormat, scales
from ..formats.granularity import PerTensor
from ..notices import notice
from ..rounding import round_calibrated, round_nearest, round_svd
from .layer_errors import ErrorPair, relative_error, square_sum
from .measurement import Measurement, add_output_errors, fall_back, make_result
from .operands import hold_out, load_blocks, load_input_rows, load_weight
from .task import LayerTask, QuantizedLayer
from .validator import Validator

Method = Callable[[LayerTask], QuantizedLayer]


def quantize_nearest(task: LayerTask) -> QuantizedLayer:
    """Round each weight to the nearest grid point.

    Formats of one level of scales work in blocks of rows, so that a layer needs little memory.
    """
    fmt = task.format
    if not isinstance(fmt, ScaledFormat):
        return _quantize_whole(task)
    shared = _tensor_scale(task, fmt) if isinstance(fmt.granularity, PerTensor) else None
    codes = torch.empty(task.padded_shape, dtype=fmt.code_dtype, device=task.weight.device)
    block_scales, start, square_error, square = [], 0, 0.0, 0.0
    for block in load_blocks(task):
        task.check_cancelled()
        scale = fmt.find_scale(block, task.recipe.scale) if shared is None else shared
        code = round_nearest(block, scale, fmt)
        square_error += square_sum(fmt.dequantize(code, scale).sub_(block))
        square += square_sum(block)
        codes[start : start + code.shape[0]] = code
        start += code.shape[0]
        block_scales.append(scale)
    scale = torch.cat(block_scales) if shared is None else shared
    error = relative_error(square_error, square)
    result = make_result(task, codes, scale, error, error)
    rows = load_input_rows(task)
    if rows is None:
        return result
    outputs = Validator(load_weight(task), hold_out(task, rows)[0]).measure(fmt.dequantize(codes, scale))
    return add_output_errors(result, outputs, outputs)


def quantize_svd(task: LayerTask) -> QuantizedLayer:
    """Minimize the error on leading directions: of the weight, or of its inputs (metric ``inputs``)."""
    rows, by_inputs = load_input_rows(task), task.recipe.svd.metric == "inputs"
    learned = hold_out(task, rows)[1].rows if by_inputs and rows is not None else None
    measurement = Measurement.prepare(task, rows)
    found = round_svd(
        measurement.weight,
        measurement.scale,
        task.format,
        task.recipe.svd,
        task.check_cancelled,
        seed=task.seed,
        inputs=learned,
    )
    result = measurement.measure(found.codes) if learned is None else measurement.accept(found.codes)
    result = result.add_errors(projected=ErrorPair.of(found.error, found.nearest_error))
    if found.fell_back and not result.errors.fell_back:
        result = fall_back(result)
    return result.add_notes(notice("directions_of_weight")) if by_inputs and learned is None else result


def quantize_calibrated(task: LayerTask) -> QuantizedLayer:
    """Minimize the output error on recorded inputs (GPTQ/LDLQ); without recorded inputs, round to nearest."""
    rows = load_input_rows(task)
    if rows is None:
        return quantize_nearest(task).add_notes(notice("nearest_without_inputs"))
    learned, measurement = hold_out(task, rows)[1].rows, Measurement.prepare(task, rows)
    codes, scale = round_calibrated(
        measurement.weight,
        measurement.scale,
        task.format,
        learned,
        task.recipe.calibrated,
        task.check_cancelled,
    )
    return measurement.accept(codes, scale)


ROUNDING_METHODS: Mapping[str, Method] = {
    "nearest": quantize_nearest,
    "svd": quantize_svd,
    "calibrated": quantize_calibrated,
}


def quantize_with_best_scale(task: LayerTask, method: Method) -> QuantizedLayer:
    """The result of ``method`` with the scale method that leaves the smallest `LayerErrors.primary`."""
    names = task.format.scale_methods
    results = {name: method(replace(task, recipe=replace(task.recipe, scale=name))) for name in names}
    name = min(results, key=lambda name: results[name].errors.primary.error)
    return results[name].add_notes(notice("scale_chosen", scale=name))


def _quantize_whole(task: LayerTask) -> QuantizedLayer:
    task.check_cancelled()
    measurement = Measurement.prepare(task, load_input_rows(task))
    return measurement.measure(measurement.nearest)


def _tensor_scale(task: LayerTask, fmt: ScaledFormat) -> Tensor:
    if task.recipe.scale == "absmax":
        extremes = [torch.stack(torch.aminmax(block)) for block in load_blocks(task)]
        return scales.from_amax(torch.stack(extremes).abs().amax(), fmt)
    return fmt.find_scale(load_weight(task), task.recipe.scale)
