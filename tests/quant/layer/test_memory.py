"""The stated peak memory of a layer, and what happens where a device lacks it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.calibration.statistics import NO_STATISTICS, InputStatistics
from calibrated_rounding.quant.files.tensors import Spec
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.layer import memory, operands
from calibrated_rounding.quant.layer import quantize as quantize_module
from calibrated_rounding.quant.layer.memory import FIXED_BYTES, largest_peak, peak_bytes
from calibrated_rounding.quant.layer.quantize import quantize_layer
from calibrated_rounding.quant.layer.task import LayerTask, QuantizedLayer
from calibrated_rounding.quant.notices import notice
from calibrated_rounding.tests.quant.peak_bytes import PeakBytes

RECIPES = {
    "nearest": Recipe(),
    "calibrated": Recipe(rounding="calibrated"),
    "svd": Recipe.from_dict({"rounding": "svd", "svd": {"iterations": 1}}),
    "svd_adamw": Recipe.from_dict({"rounding": "svd", "svd": {"iterations": 1, "optimizer": "adamw"}}),
    "svd_feedback": Recipe.from_dict({"rounding": "svd", "svd": {"optimizer": "feedback", "metric": "inputs"}}),
}
SHAPES = [(1024, 1024), (2048, 256), (256, 1536)]


def make_task(recipe: Recipe, shape: tuple[int, int] = (64, 64), fmt: str = "int8_row", rows: int = 256) -> LayerTask:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, shape[1], generator=generator).to(torch.bfloat16)
    stats = InputStatistics(rows=inputs, absmax=5.0) if rows else NO_STATISTICS
    weight = torch.randn(shape, generator=generator).to(torch.bfloat16)
    group = 256 if FORMATS[fmt].rotated else None
    return LayerTask(name="l", weight=weight, format=FORMATS[fmt], group=group, recipe=recipe, inputs=stats)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "int8_convrot", "mxfp8", "int8_blockwise", "w6a8", "nvfp4"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [0, 256])
def test_peak_is_below_what_is_stated(
    recipe: str, fmt: str, shape: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds_to_nearest = recipe == "nearest" or (recipe == "calibrated" and not rows)
    if rounds_to_nearest and fmt in ("w6a8", "nvfp4"):
        # What is stated holds for blocks as large as another device's.
        monkeypatch.setattr(operands, "CPU_BLOCK_ELEMENTS", operands.BLOCK_ELEMENTS)
    task = make_task(RECIPES[recipe], shape, fmt, rows)
    with PeakBytes() as measured:
        quantize_layer(task)
    stated = peak_bytes(shape, task.recipe, task.inputs, task.format) - FIXED_BYTES
    weight = task.weight.nbytes
    assert measured.peak + weight <= stated + FIXED_BYTES / 8
    assert stated <= 3 * (measured.peak + weight)


def test_largest_peak_is_the_widest_layers() -> None:
    tensors = {"a.weight": Spec(torch.bfloat16, (4096, 64)), "b.weight": Spec(torch.bfloat16, (64, 4096))}
    others = {"c.bias": Spec(torch.bfloat16, (10**6,)), "d.weight": Spec(torch.bfloat16, (9, 9, 9, 9))}
    recipe, stats = RECIPES["calibrated"], make_task(Recipe()).inputs
    assert largest_peak(tensors | others, recipe, {"a": stats}) == peak_bytes((64, 4096), recipe, stats)
    assert largest_peak(others, recipe, {}) == 0


def same(a: QuantizedLayer, b: QuantizedLayer) -> bool:
    return torch.equal(a.codes, b.codes) and torch.equal(a.scale, b.scale)


@pytest.mark.parametrize("recipe", ["nearest", "calibrated"])
def test_layer_that_will_not_fit_is_computed_on_the_cpu(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(RECIPES[recipe])
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 1000)
    result = quantize_layer(replace(task, device="cuda:0"))
    assert notice("computed_on_cpu", device="cuda:0") in result.notes
    assert same(result, quantize_layer(task))


def test_layer_that_does_not_fit_is_repeated_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    task, quantize = make_task(RECIPES["calibrated"]), quantize_module._quantize

    def exhaust(task: LayerTask) -> QuantizedLayer:
        if task.device != "cpu":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return quantize(task)

    monkeypatch.setattr(memory, "_free_bytes", lambda device: None)
    monkeypatch.setattr(quantize_module, "_quantize", exhaust)
    result = quantize_layer(replace(task, device="cuda:0"))
    assert notice("computed_on_cpu", device="cuda:0") in result.notes
    assert same(result, quantize_layer(task))


def test_other_errors_of_a_device_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(task: LayerTask) -> QuantizedLayer:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(memory, "_free_bytes", lambda device: None)
    monkeypatch.setattr(quantize_module, "_quantize", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        quantize_layer(replace(make_task(RECIPES["nearest"]), device="cuda:0"))
