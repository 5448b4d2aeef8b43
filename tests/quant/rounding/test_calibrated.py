from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.errors import RecipeError
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.rotation import largest_group, rotate
from calibrated_rounding.quant.layer.layer_errors import ErrorPair
from calibrated_rounding.quant.layer.operands import FEWEST_ROWS
from calibrated_rounding.quant.layer.quantize import quantize_layer
from calibrated_rounding.quant.layer.task import LayerTask, QuantizedLayer
from calibrated_rounding.quant.notices import notice
from calibrated_rounding.quant.recipe import ROUNDINGS, CalibratedSettings, SvdSettings
from calibrated_rounding.quant.rounding.calibrated import TEXT_DAMPING

Draw = Callable[[int, int, int], torch.Tensor]


def correlated(rows: int, width: int, seed: int) -> torch.Tensor:
    """Inputs whose covariance has a power-law spectrum in a random basis, the same for every seed."""
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(99)))[0]
    spread = torch.arange(1, width + 1).float() ** -0.7
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * spread @ basis.T


def independent_outliers(rows: int, width: int, seed: int) -> torch.Tensor:
    inputs = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    inputs[:, ::32] *= 20
    return inputs


def quantized(weight: torch.Tensor, name: str, inputs: torch.Tensor | None, **recipe: object) -> QuantizedLayer:
    fmt = FORMATS[name]
    known = InputStatistics(
        rows=inputs, absmax=None if inputs is None or not len(inputs) else float(inputs.abs().max())
    )
    group = largest_group(weight.shape[1], 256) if fmt.rotated else None
    made = Recipe(**recipe)  # type: ignore[arg-type]
    return quantize_layer(LayerTask(name="l", weight=weight, format=fmt, group=group, recipe=made, inputs=known))


def outputs(result: QuantizedLayer) -> tuple[ErrorPair, ErrorPair]:
    """The output errors, W8A16 and W8A8."""
    w8a16, w8a8 = result.errors.output_w8a16, result.errors.output_w8a8
    assert w8a16 is not None and w8a8 is not None
    return w8a16, w8a8


def output_error(result: QuantizedLayer, weight: torch.Tensor, inputs: torch.Tensor, name: str) -> float:
    fmt = FORMATS[name]
    if fmt.rotated:
        weight, inputs = rotate(weight, 256), rotate(inputs, 256)
    return float((inputs @ (fmt.dequantize(result.codes, result.scale) - weight).T).norm())


@pytest.mark.parametrize("name", FORMATS)
def test_output_error_on_unseen_inputs_halves(name: str, trained: torch.Tensor) -> None:
    result = quantized(trained, name, correlated(2048, 256, 1), rounding="calibrated")
    unseen = correlated(2048, 256, 2)
    before = output_error(quantized(trained, name, None), trained, unseen, name)
    assert output_error(result, trained, unseen, name) < 0.55 * before
    w8a16, w8a8 = outputs(result)
    assert w8a16.error < 0.55 * w8a16.nearest
    assert w8a8.error < w8a8.nearest


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [8, 16, 256, 2048])
@pytest.mark.parametrize("draw", [correlated, independent_outliers])
def test_never_worse_than_nearest_on_held_out_rows(name: str, rows: int, draw: Draw, trained: torch.Tensor) -> None:
    result = quantized(trained, name, draw(rows, 256, 3), rounding="calibrated")
    assert all(pair.error <= pair.nearest for pair in outputs(result))


@pytest.mark.parametrize("name", ["int8_row", "float8_e4m3fn"])
def test_independent_outliers_do_not_overfit(name: str, trained: torch.Tensor) -> None:
    result = quantized(trained, name, independent_outliers(2048, 256, 1), rounding="calibrated")
    unseen = independent_outliers(4096, 256, 2)
    nearest = quantized(trained, name, None)
    assert output_error(result, trained, unseen, name) <= output_error(nearest, trained, unseen, name)


@pytest.mark.parametrize("name", ["w4a8", "int8_row"])
def test_text_encoders_come_closer_on_other_prompts(name: str, trained: torch.Tensor) -> None:
    """A layer of weights alone is a text encoder's, which also reads prompts unlike the recorded ones."""
    recorded, fmt = correlated(2048, 256, 1), FORMATS[name]
    task = LayerTask(
        name="l",
        weight=trained,
        format=fmt,
        group=256 if fmt.rotated else None,
        recipe=Recipe(rounding="calibrated"),
        inputs=InputStatistics(rows=recorded),
    )
    text, other = quantize_layer(replace(task, weight_only=True)), quantize_layer(task)
    unlike = torch.randn(2048, 256, generator=torch.Generator().manual_seed(2))
    assert output_error(text, trained, unlike, name) < 0.95 * output_error(other, trained, unlike, name)
    assert output_error(text, trained, recorded, name) < 1.1 * output_error(other, trained, recorded, name)
    given = replace(task.recipe, calibrated=CalibratedSettings(damping=TEXT_DAMPING))
    assert torch.equal(text.codes, quantize_layer(replace(task, recipe=given)).codes)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_too_few_rows_round_to_nearest(rows: int, trained: torch.Tensor) -> None:
    result = quantized(trained, "int8_row", correlated(rows, 256, 1), rounding="calibrated")
    assert torch.equal(result.codes, quantized(trained, "int8_row", None).codes)
    assert result.notes == (notice("nearest_few_rows", rows=rows, needed=FEWEST_ROWS),)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20, 1e15])
def test_constant_inputs(value: float, trained: torch.Tensor) -> None:
    """All channels constant, or one constant and the rest dead: a moment of rank one, or zero."""
    for inputs in (torch.full((64, 256), value), torch.zeros(64, 256).index_fill_(1, torch.tensor([5]), value)):
        result = quantized(trained, "int8_row", inputs, rounding="calibrated")
        _, w8a8 = outputs(result)
        assert w8a8.error <= w8a8.nearest


def test_singular_hessian_is_damped_until_positive(trained: torch.Tensor) -> None:
    inputs = torch.randn(512, 3) @ torch.randn(3, 256) * 1e3
    result = quantized(trained, "int8_row", inputs, rounding="calibrated", calibrated=CalibratedSettings(damping=1e-12))
    w8a16, _ = outputs(result)
    assert w8a16.error < 0.55 * w8a16.nearest


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_method_reports_output_error(rounding: str, trained: torch.Tensor) -> None:
    inputs = correlated(256, 256, 1)
    result = quantized(trained, "int8_row", inputs, rounding=rounding)
    held_out = inputs[:32]
    before = quantized(trained, "int8_row", None)
    w8a16, _ = outputs(result)
    for layer, reported in ((result, w8a16.error), (before, w8a16.nearest)):
        error = output_error(layer, trained, held_out, "int8_row") / float((held_out @ trained.T).norm())
        assert reported == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["original", "adamw", "feedback"])
def test_svd_on_inputs_beats_nearest(optimizer: str, trained: torch.Tensor) -> None:
    settings = SvdSettings(optimizer=optimizer, metric="inputs", iterations=40)
    result = quantized(trained, "float8_e4m3fn", correlated(1024, 256, 1), rounding="svd", svd=settings)
    unseen = correlated(2048, 256, 2)
    nearest = quantized(trained, "float8_e4m3fn", None)
    before = output_error(nearest, trained, unseen, "float8_e4m3fn")
    assert output_error(result, trained, unseen, "float8_e4m3fn") < 0.9 * before


def test_svd_without_inputs_adds_a_note(trained: torch.Tensor) -> None:
    result = quantized(trained, "int8_row", None, rounding="svd", svd=SvdSettings(metric="inputs", iterations=2))
    assert result.notes == (notice("directions_of_weight"),)


@pytest.mark.parametrize("name", ["int8_row", "float8_e4m3fn", "mxfp8"])
@pytest.mark.parametrize("rounding", ["nearest", "calibrated"])
def test_auto_scale_is_no_worse_than_absmax(name: str, rounding: str, trained: torch.Tensor) -> None:
    inputs = correlated(512, 256, 1)
    errors = {}
    for scale in ("absmax", "mse", "auto"):
        result = quantized(trained, name, inputs, rounding=rounding, scale=scale)
        errors[scale] = outputs(result)[1].error
    (chosen,) = (note.values["scale"] for note in result.notes if note.kind == "scale_chosen")
    assert errors["auto"] == errors[str(chosen)] <= errors["absmax"]


@pytest.mark.parametrize(("setting", "value"), [("damping", 0.0), ("held_out", 0.0), ("held_out", 1.0), ("passes", -1)])
def test_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(RecipeError, match=setting):
        CalibratedSettings(**{setting: value})  # type: ignore[arg-type]
