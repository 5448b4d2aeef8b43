"""The rounding methods as a layer takes them: the scale, the codes, and the errors that they leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..formats import Format, scales
from ..formats.granularity import PerTensor
from ..rounding import round_calibrated, round_nearest, round_svd
from .acceptance import keep_better
from .activations import Inputs
from .operands import float_blocks, float_weight, known_inputs
from .output_error import Validator
from .task import QuantizedLayer, Task

Method = Callable[[Task], QuantizedLayer]

UNKNOWN = "no inputs were recorded"


def nearest(task: Task) -> QuantizedLayer:
    """Each weight on its own, in blocks: a layer costs little memory beside itself."""
    fmt, method = task.format, scales.SCALE_METHODS[task.recipe.scale]
    shared = _tensor_scale(task) if isinstance(fmt.granularity, PerTensor) else None
    codes = torch.empty(task.padded_shape, dtype=fmt.grid.dtype, device=task.weight.device)
    found, start, square_error, square = [], 0, 0.0, 0.0
    for block in float_blocks(task):
        task.check_cancelled()
        scale = method(block, fmt) if shared is None else shared
        code = round_nearest(block, scale, fmt)
        square_error += float(fmt.dequantize(code, scale).sub_(block).square_().sum())
        square += float(block.square().sum())
        codes[start : start + code.shape[0]] = code
        start += code.shape[0]
        found.append(scale)
    scale = torch.cat(found) if shared is None else shared
    result = QuantizedLayer(codes, scale, _ratio(square_error, square))
    inputs = known_inputs(task)
    if inputs is None:
        return result
    error = _validator(task, float_weight(task), inputs).error(fmt.dequantize(codes, scale))
    return replace(result, output=error, output_nearest=error)


def svd(task: Task) -> QuantizedLayer:
    """Against the leading directions of the weight, or of its inputs."""
    weight, inputs, fmt, settings = float_weight(task), known_inputs(task), task.format, task.recipe.svd
    scale = scales.SCALE_METHODS[task.recipe.scale](weight, fmt)
    wanted = settings.metric == "inputs"
    learned = inputs.split(task.recipe.calibrated.held_out)[1].rows if wanted and inputs is not None else None
    found = round_svd(weight, scale, fmt, settings, task.check_cancelled, seed=task.seed, inputs=learned)
    result = QuantizedLayer(
        found.codes,
        scale,
        _weight_error(found.codes, scale, weight, fmt),
        projected=found.error,
        projected_nearest=found.nearest_error,
        fell_back=found.fell_back,
        notes=(f"the weight's own directions counted: {UNKNOWN}",) if wanted and learned is None else (),
    )
    if inputs is None:
        return result
    validator, plain = _validator(task, weight, inputs), round_nearest(weight, scale, fmt)
    if learned is not None:
        return _kept(result, weight, fmt, validator, plain)
    output, before = (validator.error(fmt.dequantize(codes, scale)) for codes in (found.codes, plain))
    return replace(result, output=output, output_nearest=before)


def calibrated(task: Task) -> QuantizedLayer:
    """Against the inputs."""
    inputs = known_inputs(task)
    if inputs is None:
        return replace(nearest(task), notes=(f"rounded to nearest: {UNKNOWN}",))
    weight, fmt, settings = float_weight(task), task.format, task.recipe.calibrated
    scale = scales.SCALE_METHODS[task.recipe.scale](weight, fmt)
    learned = inputs.split(settings.held_out)[1]
    codes = round_calibrated(weight, scale, fmt, learned.rows, settings, task.check_cancelled)
    result = QuantizedLayer(codes, scale, error=0.0)
    return _kept(result, weight, fmt, _validator(task, weight, inputs), round_nearest(weight, scale, fmt))


ROUNDING_METHODS: Mapping[str, Method] = {"nearest": nearest, "svd": svd, "calibrated": calibrated}


def best_scale(task: Task, method: Method) -> QuantizedLayer:
    """The result of ``method`` with the way of finding scales that leaves the least error of the output as run; where
    no inputs are known, of the weight.
    """
    tried = {name: method(replace(task, recipe=replace(task.recipe, scale=name))) for name in scales.SCALE_METHODS}
    name = min(tried, key=lambda name: _cost(tried[name]))
    return replace(tried[name], notes=(*tried[name].notes, f"scale: {name}"))


def _cost(result: QuantizedLayer) -> float:
    return result.error if result.output is None else result.output.w8a8


def _validator(task: Task, weight: Tensor, inputs: Inputs) -> Validator:
    """By the inputs that nothing is learned from."""
    return Validator(weight, inputs.split(task.recipe.calibrated.held_out)[0])


def _kept(result: QuantizedLayer, weight: Tensor, fmt: Format, validator: Validator, plain: Tensor) -> QuantizedLayer:
    """The result with its codes only where the validator finds them better than the ``plain`` nearest ones."""
    choice = keep_better(result.codes, plain, result.scale, fmt, validator)
    back = choice.rows_fell_back
    return replace(
        result,
        codes=choice.codes,
        error=_weight_error(choice.codes, result.scale, weight, fmt),
        output=choice.output,
        output_nearest=choice.nearest,
        fell_back=back == len(weight),
        notes=(*result.notes, f"{back} of {len(weight)} rows kept nearest") if 0 < back < len(weight) else result.notes,
    )


def _tensor_scale(task: Task) -> Tensor:
    if task.recipe.scale == "absmax":
        extremes = [torch.stack(torch.aminmax(block)) for block in float_blocks(task)]
        return scales.from_amax(torch.stack(extremes).abs().amax(), task.format)
    return scales.SCALE_METHODS[task.recipe.scale](float_weight(task), task.format)


def _weight_error(codes: Tensor, scale: Tensor, weight: Tensor, fmt: Format) -> float:
    square_error = float(fmt.dequantize(codes, scale).sub_(weight).square_().sum(dtype=torch.float64))
    return _ratio(square_error, float(weight.square().sum(dtype=torch.float64)))


def _ratio(square_error: float, square: float) -> float:
    return math.sqrt(square_error / square) if square > 0 else 0.0
