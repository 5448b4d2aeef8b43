"""Huge weights and inputs: errors stay true numbers, and what float32 cannot hold is refused by name."""

from __future__ import annotations

import json
import math

import pytest
import torch
from calibrated_rounding.quant import InputStatistics, LayerError, QuantError, Recipe, SvdSettings, quantize_state_dict
from calibrated_rounding.quant.files.dequantized import as_float
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.files.tensors import is_finite
from calibrated_rounding.quant.formats import FORMATS, Format, Scale
from calibrated_rounding.quant.notices import notice
from calibrated_rounding.quant.recipe import ROUNDINGS
from calibrated_rounding.quant.reports.report import Report

EVERY_FORMAT = pytest.mark.parametrize("name", FORMATS)
FAST = SvdSettings(iterations=2)


def weight_with(value: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 128, generator=generator)
    weight[3, 4] = value
    return weight


def quantized(
    weight: torch.Tensor, name: str, rounding: str = "nearest", inputs: torch.Tensor | None = None
) -> tuple[dict[str, torch.Tensor], Report]:
    recipe = Recipe(format=name, rounding=rounding, profile="generic", svd=FAST)
    known = {} if inputs is None else {"a": InputStatistics(rows=inputs, absmax=float(inputs.abs().max()))}
    return quantize_state_dict({"a.weight": weight}, recipe, statistics=known)


@EVERY_FORMAT
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_one_huge_weight_leaves_true_errors(name: str, rounding: str) -> None:
    weight, inputs = weight_with(1e30), torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    tensors, report = quantized(weight, name, rounding, inputs)
    errors = report.layers[0].errors
    read = as_float(StateDictSource(tensors), dequantize=True, dtype=torch.float32).read("a.weight").double()
    true_error = float((read - weight).norm() / weight.double().norm())
    assert errors.weight.error == pytest.approx(true_error, rel=1e-3, abs=1e-6)
    assert errors.pairs.keys() >= {"weight", "output_w8a16", "output_w8a8"}
    assert all(math.isfinite(value) for pair in errors.pairs.values() for value in (pair.error, pair.nearest))
    json.loads(report.to_json(), parse_constant=pytest.fail)


def test_one_huge_row_does_not_hide_the_error_of_the_others() -> None:
    weight = weight_with(0.0)
    weight[3] = 1e20
    _, report = quantized(weight, "int8_tensor")
    assert report.layers[0].errors.weight.error == pytest.approx(math.sqrt(127 / 128) * 1e-20 * math.sqrt(128), rel=1)


@EVERY_FORMAT
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_weights_that_overflow_in_a_format_name_the_layer(name: str, rounding: str) -> None:
    weight = torch.full((128, 128), torch.finfo(torch.float32).max)
    try:
        tensors, report = quantized(weight, name, rounding, torch.randn(64, 128))
    except LayerError as error:
        assert str(error).startswith("Layer 'a' ")
        return
    read = as_float(StateDictSource(tensors), dequantize=True, dtype=torch.float32).read("a.weight")
    assert bool(read.isfinite().all())
    json.loads(report.to_json(), parse_constant=pytest.fail)


@EVERY_FORMAT
@pytest.mark.parametrize("rounding", ["nearest", "calibrated"])
def test_output_errors_that_overflow_are_null_and_noted(name: str, rounding: str) -> None:
    inputs = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)) * 1e20
    _, report = quantized(weight_with(1e30), name, rounding, inputs)
    layer = report.layers[0]
    assert notice("output_error_overflow") in layer.notes
    assert "output error unknown: it overflows float32 (1): a" in report.short().splitlines()
    stored = json.loads(report.to_json(), parse_constant=pytest.fail)["layers"][0]["errors"]
    assert stored["output_w8a8"] is None and math.isfinite(stored["weight"]["error"])


@pytest.mark.parametrize("bias_correction", ["off", "synthetic"])
def test_a_bias_beyond_its_dtype_is_refused_by_name(bias_correction: str) -> None:
    tensors = {"a.weight": weight_with(0.0), "a.bias": torch.full((128,), 1e5)}
    recipe = Recipe(profile="generic", keep_dtype="float16", bias_correction=bias_correction)
    with pytest.raises(LayerError, match=r"^The tensor 'a\.bias' holds values of up to 1e\+05, more than float16"):
        quantize_state_dict(tensors, recipe)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_a_corrected_bias_takes_the_kept_dtype(name: str) -> None:
    tensors = {"a.weight": weight_with(0.0), "a.bias": torch.ones(128).half()}
    corrected, _ = quantize_state_dict(tensors, Recipe(profile="generic", keep_dtype=name, bias_correction="synthetic"))
    assert corrected["a.bias"].dtype == getattr(torch, name)


def test_a_corrected_bias_that_overflows_is_refused_by_name() -> None:
    tensors = {"a.weight": weight_with(1e6), "a.bias": torch.zeros(128).half()}
    known = {"a": InputStatistics(mean=torch.full((128,), 1e6))}
    recipe = Recipe(format="int8_tensor", profile="generic", bias_correction="measured")
    with pytest.raises(LayerError, match=r"^The bias 'a\.bias' overflows when it is corrected"):
        quantize_state_dict(tensors, recipe, statistics=known)


def test_infinity_in_a_kept_tensor_stays() -> None:
    tensors = {"a.weight": weight_with(0.0), "mask": torch.tensor([0.0, -torch.inf])}
    kept, _ = quantize_state_dict(tensors, Recipe(profile="generic", keep_dtype="float16"))
    assert kept["mask"].tolist() == [0.0, -torch.inf]


@EVERY_FORMAT
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scales_that_are_not_finite_are_never_written(name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(FORMATS[name])
    pack = kind.pack

    def spoil(self: Format, codes: torch.Tensor, scale: Scale) -> dict[str, torch.Tensor]:
        packed = pack(self, codes, scale)
        tensor = next(tensor for part, tensor in packed.items() if part != "weight")
        broken = tensor.view(torch.uint8).clone().fill_(255).view(tensor.dtype) if tensor.itemsize == 1 else None
        return packed | {
            part: torch.full_like(tensor, value) if broken is None else broken
            for part in packed
            if packed[part] is tensor
        }

    monkeypatch.setattr(kind, "pack", spoil)
    with pytest.raises(QuantError, match="'a"):
        quantized(weight_with(0.0), name)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_codes_that_are_not_finite_are_seen(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = torch.isfinite(every.float())
    assert is_finite(every[finite])
    assert not any(is_finite(code.reshape(1)) for code in every[~finite])
