from __future__ import annotations

import comfy_kitchen
import pytest
import torch
from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.errors import RecipeError
from calibrated_rounding.quant.formats import ALIASES, FORMATS, Format, format_name, needs_notices
from calibrated_rounding.quant.formats.dequantize import dequantize_layer
from calibrated_rounding.quant.layer.quantize import quantize_layer
from calibrated_rounding.quant.layer.task import LayerTask, QuantizedLayer
from comfy_kitchen.backends.eager import quantization as host


def quantized(weight: torch.Tensor, fmt: Format, group: int | None = None) -> QuantizedLayer:
    return quantize_layer(LayerTask(name="l", weight=weight, format=fmt, group=group, recipe=Recipe()))


def test_per_row_int8_equals_comfy_kitchen(trained: torch.Tensor) -> None:
    ours = quantized(trained, FORMATS["int8_row"])
    codes, scale = host.quantize_int8_rowwise(trained)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.scale, scale)


def test_per_tensor_int8_equals_comfy_kitchen(trained: torch.Tensor) -> None:
    ours = quantized(trained, FORMATS["int8_tensor"])
    codes, scale = host.quantize_int8_tensorwise(trained)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.scale, scale)


@pytest.mark.parametrize("group", [16, 64, 256])
def test_rotated_int8_is_the_hosts_bit_for_bit(group: int, trained: torch.Tensor) -> None:
    ours = quantized(trained, FORMATS["int8_convrot"], group)
    codes, scale = host.quantize_int8_convrot_weight(trained, group)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.scale, scale)
    back = dequantize_layer(ours.codes, ours.scale, FORMATS["int8_convrot"], group, (512, 256))
    assert torch.equal(back, host.dequantize_int8_convrot_weight(codes, scale, group))


@pytest.mark.parametrize("shape", [(512, 256), (40, 48), (33, 100)])
def test_mxfp8_is_the_hosts_bit_for_bit(shape: tuple[int, int], trained: torch.Tensor) -> None:
    weight = trained[: shape[0], : shape[1]].clone()
    weight[0, :32] = 0
    fmt = FORMATS["mxfp8"]
    result = quantized(weight, fmt)
    packed = fmt.pack(result.codes, result.scale)
    codes, scale = comfy_kitchen.quantize_mxfp8(weight, pad_32x=True)
    ours = comfy_kitchen.dequantize_mxfp8(packed["weight"], packed["weight_scale"].view(torch.float8_e8m0fnu))
    assert torch.equal(packed["weight"].float(), codes.float())
    assert torch.equal(ours, comfy_kitchen.dequantize_mxfp8(codes, scale))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in packed.items()} == fmt.layout(shape)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
def test_layout_matches_packed_tensors(fmt: Format, trained: torch.Tensor) -> None:
    result = quantized(trained, fmt, 256 if fmt.rotated else None)
    packed = fmt.pack(result.codes, result.scale)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in packed.items()} == fmt.layout((512, 256))
    again = fmt.dequantize(*fmt.unpack(packed))
    assert torch.equal(again, fmt.dequantize(result.codes, result.scale))


def test_names() -> None:
    assert {format_name(alias) for alias in ALIASES} <= {*FORMATS, "bfloat16", "float16", "float32"}
    with pytest.raises(RecipeError, match="Did you mean 'int8_row'"):
        format_name("int8_rows")


def test_needs_are_said_for_formats_that_newer_versions_load() -> None:
    said = {entry.values["format"]: entry.values["needs"] for entry in needs_notices(FORMATS.values())}
    assert said.keys() == {"w6a8", "w4a8", "nvfp4"}
    assert "0.31" in str(said["w4a8"]) and "0.27" in str(said["nvfp4"]) and "October 2026" in str(said["w6a8"])


@pytest.mark.parametrize("name", ["w6a8", "w4a8"])
def test_rotation_of_packed_formats_is_never_left_out(name: str) -> None:
    fmt = FORMATS[name]
    assert not fmt.takes((64, 40)) and fmt.takes((64, 96)) and not fmt.takes((64, 96), lookup=True)
    marker = fmt.make_marker((64, 96), 16, False).to_json()
    assert marker == {
        "format": fmt.comfyui_name,
        "group_size": 16,
        "convrot_groupsize": 16,
        **({"convrot": True} if name == "w6a8" else {}),
    }
