"""The rounding methods of a layer: each finds scales and codes and measures them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..notices import notice
from ..rounding import round_calibrated, round_svd
from ..rounding.calibrated import SMALLEST_DAMPING, TEXT_DAMPING
from .choice import Alternative, choose_alternative
from .layer_errors import ErrorPair
from .measurement import Measurement, fall_back
from .nearest import quantize_nearest
from .operands import hold_out, load_input_rows, note_missing_rows
from .task import LayerTask, QuantizedLayer

Method = Callable[[LayerTask], QuantizedLayer]


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
    if by_inputs and learned is None:
        return result.add_notes(note_missing_rows(task, "directions_of_weight", "directions_few_rows"))
    return result


def quantize_calibrated(task: LayerTask) -> QuantizedLayer:
    """Minimize the output error on recorded inputs (GPTQ/LDLQ); without recorded inputs, round to nearest."""
    rows = load_input_rows(task)
    if rows is None:
        return quantize_nearest(task).add_notes(note_missing_rows(task, "nearest_without_inputs", "nearest_few_rows"))
    learned, measurement = hold_out(task, rows)[1].rows, Measurement.prepare(task, rows)
    codes, scale = round_calibrated(
        measurement.weight,
        measurement.scale,
        task.format,
        learned,
        task.recipe.calibrated,
        task.check_cancelled,
        least_damping=TEXT_DAMPING if task.weight_only else SMALLEST_DAMPING,
    )
    return measurement.accept(codes, scale)


ROUNDING_METHODS: Mapping[str, Method] = {
    "nearest": quantize_nearest,
    "svd": quantize_svd,
    "calibrated": quantize_calibrated,
}


def quantize_with_best_scale(task: LayerTask, method: Method) -> QuantizedLayer:
    """The result of ``method`` with the first scale method, or with another one that is surely better."""
    names = task.format.scale_methods
    results = [method(replace(task, recipe=replace(task.recipe, scale=name))) for name in names]
    index = choose_alternative([Alternative.of(result) for result in results])
    return results[index].add_notes(notice("scale_chosen", scale=names[index]))
