"""Huge weights and inputs: errors stay true numbers, and what float32 cannot hold is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import (
    InputStatistics,
    LayerError,
    QuantError,
    Recipe,
    SvdSettings,
    quantize_file,
    quantize_state_dict,
)
from calibrated_rounding.quant.files.dequantized import as_float
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.files.tensors import is_finite
from calibrated_rounding.quant.formats import FORMATS, Format, Scale
from calibrated_rounding.quant.formats.marker import Marker
from calibrated_rounding.quant.notices import notice
from calibrated_rounding.quant.recipe import ROUNDINGS
from calibrated_rounding.quant.reports.report import Report
from safetensors.torch import load_file, save_file

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


def test_huge_row_does_not_hide_errors() -> None:
    weight = weight_with(0.0)
    weight[3] = 1e20
    _, report = quantized(weight, "int8_tensor")
    assert report.layers[0].errors.weight.error == pytest.approx(math.sqrt(127 / 128) * 1e-20 * math.sqrt(128), rel=1)


@EVERY_FORMAT
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_overflowing_weights_name_the_layer(name: str, rounding: str) -> None:
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
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", ["absmax", "mse", "auto"])
def test_one_row_near_the_limit_is_finite_or_refused(name: str, rounding: str, scale: str) -> None:
    weight = weight_with(0.0)
    weight[3] = 3e38
    recipe = Recipe(format=name, rounding=rounding, scale=scale, profile="generic", svd=FAST)
    inputs = InputStatistics(rows=torch.randn(64, 128, generator=torch.Generator().manual_seed(1)))
    expect_finite_or_refused({"a.weight": weight}, recipe, {"a": inputs})


WAYS = {
    "auto": {"format": "auto"},
    "auto within a size": {"format": "auto", "target_share": 0.9},
    "auto of two": {"format": "auto", "formats": ("mxfp8", "int8_convrot")},
    "auto rotation": {"rotation_group": "auto"},
    "upgrade": {"format": "int8_row", "upgrade": "mxfp8", "max_error": 0.02},
    "embeddings": {"format": "int8_row", "embeddings": True},
    "bias correction": {"format": "int8_row", "bias_correction": "measured"},
    "input scale": {"format": "float8_e4m3fn", "input_scale": "mse"},
    "kept in float16": {"format": "int8_row", "exclude": ("^a$",), "keep_dtype": "float16"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tensor", ["a.weight", "a.bias", "norm.weight", "tok_emb.weight"])
def test_huge_tensor_is_finite_or_refused_every_way(way: str, tensor: str) -> None:
    tensors = {"a.weight": weight_with(0.0), "a.bias": torch.zeros(128), "b.weight": weight_with(1.0)}
    tensors |= {"norm.weight": torch.ones(128), "tok_emb.weight": weight_with(2.0)}
    tensors[tensor] = torch.full_like(tensors[tensor], 3e38)
    rows = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    known = InputStatistics(rows=rows, absmax=float(rows.abs().max()), mean=rows.mean(0))
    recipe = Recipe(profile="generic", **WAYS[way])  # type: ignore[arg-type]
    expect_finite_or_refused(tensors, recipe, {"a": known, "b": known})


def expect_finite_or_refused(
    tensors: dict[str, torch.Tensor], recipe: Recipe, statistics: dict[str, InputStatistics]
) -> None:
    """Every tensor of the result and what it dequantizes to is finite, or one sentence names a tensor."""
    try:
        written, report = quantize_state_dict(tensors, recipe, statistics=statistics)
    except LayerError as error:
        assert any(f"'{name}'" in str(error) or f"'{name.removesuffix('.weight')}'" in str(error) for name in tensors)
        assert "\n" not in str(error)
        return
    assert all(map(is_finite, written.values()))
    floats = as_float(StateDictSource(written), dequantize=True, dtype=torch.float32)
    assert all(is_finite(floats.read(name)) for name in floats.tensors)
    json.loads(report.to_json(), parse_constant=pytest.fail)


def test_float64_weights_beyond_float32_are_named() -> None:
    weight = weight_with(0.0).double()
    weight[5, 6] = -1e39
    with pytest.raises(LayerError, match=r"^Layer 'a' holds weights of up to 1e\+39, more than float32 can hold"):
        quantized(weight, "int8_row")


def test_kept_float64_beyond_float32_is_named() -> None:
    tensors = {"a.weight": weight_with(0.0), "norm": torch.tensor([1e39], dtype=torch.float64)}
    with pytest.raises(LayerError, match=r"^The tensor 'norm' .* more than float32 can hold; keep it in float64"):
        quantize_state_dict(tensors, Recipe(profile="generic", keep_dtype="float32"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_recorded_inputs_that_are_not_finite_are_named(value: float, rounding: str) -> None:
    inputs = torch.randn(64, 128)
    inputs[7, 8] = value
    recipe = Recipe(rounding=rounding, profile="generic", svd=SvdSettings(iterations=2, metric="inputs"))
    with pytest.raises(LayerError, match=r"^The calibration of layer 'a' holds NaN or infinite inputs"):
        quantize_state_dict({"a.weight": weight_with(0.0)}, recipe, statistics={"a": InputStatistics(rows=inputs)})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_input_means_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(QuantError, match="mean"):
        InputStatistics(mean=torch.tensor([0.0, value]))


def test_dequantized_weights_that_overflow_are_refused_by_name() -> None:
    scale = torch.full((128, 1), 1e37)
    stored = {"a.weight": torch.full((128, 128), 127, dtype=torch.int8), "a.weight_scale": scale}
    stored["a.comfy_quant"] = Marker(format="int8_tensorwise").to_tensor()
    recipe = Recipe(profile="generic", dequantize=True, exclude=("^a$",))
    with pytest.raises(QuantError, match=r"^Layer 'a' holds weights that bfloat16 cannot hold"):
        quantize_state_dict({**stored, "b.weight": weight_with(0.0)}, recipe)


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
def test_bias_beyond_dtype_is_refused(bias_correction: str) -> None:
    tensors = {"a.weight": weight_with(0.0), "a.bias": torch.full((128,), 1e5)}
    recipe = Recipe(profile="generic", keep_dtype="float16", bias_correction=bias_correction)
    with pytest.raises(LayerError, match=r"^The tensor 'a\.bias' holds values of up to 1e\+05, more than float16"):
        quantize_state_dict(tensors, recipe)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_a_corrected_bias_takes_the_kept_dtype(name: str) -> None:
    tensors = {"a.weight": weight_with(0.0), "a.bias": torch.ones(128).half()}
    corrected, _ = quantize_state_dict(tensors, Recipe(profile="generic", keep_dtype=name, bias_correction="synthetic"))
    assert corrected["a.bias"].dtype == getattr(torch, name)


def test_overflowing_corrected_bias_is_refused() -> None:
    tensors = {"a.weight": weight_with(1e6), "a.bias": torch.zeros(128).half()}
    known = {"a": InputStatistics(mean=torch.full((128,), 1e6))}
    recipe = Recipe(format="int8_tensor", profile="generic", bias_correction="measured")
    with pytest.raises(LayerError, match=r"^The bias 'a\.bias' overflows when it is corrected"):
        quantize_state_dict(tensors, recipe, statistics=known)


def test_kept_tensors_that_are_not_finite_keep_their_bytes(tmp_path: Path) -> None:
    """They are the source's own: a mask may hold infinity, and what ComfyUI does with them does not change."""
    bits = torch.tensor([0x7FC00001, 0x7F800001, 0xFF800000 - 2**32, 0x7F800000, 0], dtype=torch.int32)
    tensors = {
        "a.weight": weight_with(0.0),
        "b.weight": torch.full((128, 128), torch.nan),
        "mask": bits.view(torch.float32),
    }
    tensors |= {"a.bias": torch.tensor([torch.inf, torch.nan]).repeat(64)}
    save_file(tensors, tmp_path / "m.safetensors")
    quantize_file(tmp_path / "m.safetensors", tmp_path / "q.safetensors", Recipe(profile="generic", exclude=("^b$",)))
    written = load_file(tmp_path / "q.safetensors")
    for name in ("b.weight", "mask", "a.bias"):
        assert torch.equal(written[name].view(torch.int32), tensors[name].view(torch.int32))


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
