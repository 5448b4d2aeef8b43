"""What is quantized in a source, and what is refused of it: by layer, by tensor, in one sentence, on every path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_file, quantize_state_dict
from calibrated_rounding.quant.errors import AlreadyQuantizedError, CheckpointError, UnreadableLayerError
from calibrated_rounding.quant.files.checks import layer_problem
from calibrated_rounding.quant.files.dequantized import as_float
from calibrated_rounding.quant.files.quantized import quantized_layers
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.files.tensors import Spec
from calibrated_rounding.quant.reports.comparison import compare_files
from calibrated_rounding.quant.reports.inspection import inspect_file
from calibrated_rounding.tests.quant.planning.architectures import names, shapes
from safetensors.torch import save_file

from .quantized_layers import (
    E4M3,
    FLOAT,
    Tensors,
    block_fp8,
    byte_tensor,
    dequantize_with_layout,
    every_layer,
    json_tensor,
    layer,
    recognised,
    written,
)

INT8 = torch.zeros(32, 64, dtype=torch.int8)
UINT8 = torch.zeros(32, 32, dtype=torch.uint8)
FP8 = torch.zeros(32, 64).to(E4M3)
INT32 = torch.zeros(8, 8, dtype=torch.int32)
ONE, ROWS = torch.ones(()), torch.ones(32, 1)

INT8_MARKER = {"format": "int8_tensorwise"}
BLOCKS = {"format": "int8_blockwise", "group_size": 16}


def int8(marker: dict[str, object] = INT8_MARKER, **parts: torch.Tensor) -> Tensors:
    return layer(marker, **{"weight": INT8, "weight_scale": ROWS, **parts})


FOREIGN: dict[str, tuple[Tensors, str, str]] = {
    "AutoAWQ": (layer(None, qweight=INT32, qzeros=INT32, scales=ROWS), "l.qzeros", "AutoAWQ"),
    "GPTQ": (layer(None, qweight=INT32, scales=ROWS, g_idx=INT32[0]), "l.g_idx", "GPTQ"),
    "bitsandbytes NF4": (
        layer(None, weight=UINT8)
        | layer(None, "l.weight", absmax=ROWS, quant_map=ROWS)
        | {"l.weight.quant_state.bitsandbytes__nf4": UINT8[0]},
        "l.weight.",
        "bitsandbytes",
    ),
    "bitsandbytes INT8": (layer(None, weight=INT8, SCB=ROWS), "l.SCB", "bitsandbytes"),
    "compressed-tensors": (
        layer(None, weight_packed=INT32, weight_scale=ROWS),
        "l.weight_packed",
        "compressed-tensors",
    ),
    "torchao": (layer(None, _weight_qdata=INT8, _weight_scale=ROWS), "l._weight_", "torchao"),
    "quanto": (layer(None, "l.weight", _data=INT8, _scale=ROWS) | {"l.input_scale": ONE}, "l.weight._", "quanto"),
    "SVDQuant": (
        layer(None, qweight=INT8, wscales=ROWS, lora_down=ROWS, lora_up=ROWS, smooth=ROWS),
        "l.wscales",
        "SVDQuant",
    ),
    "SDNQ of 4 bits": (layer(None, weight=UINT8, scale=ROWS, zero_point=ROWS), "l.scale", "SDNQ"),
    "SDNQ of 8 bits": (layer(None, weight=INT8, scale=ROWS), "l.scale", "SDNQ"),
    "SDNQ in FP8": (layer(None, weight=FP8, scale=ROWS), "l.scale", "SDNQ"),
    "packed codes": (layer(None, weight=UINT8), "'l'", "uint8"),
    "scaled FP8 convolution": (layer(None, weight=FP8[..., None, None], weight_scale=ONE), "'l'", "[32, 64, 1, 1]"),
    "scaled FP8 parameter": ({"l.in_proj": FP8, "l.in_proj_scale": ONE}, "l.in_proj", "codes beside a scale"),
    "MXFP4 experts": ({"l.up_blocks": UINT8, "l.up_scales": UINT8}, "l.up_blocks", "codes beside a scale"),
    "a float weight with a scale": (layer(None, weight=FLOAT, weight_scale=ONE), "l.weight_scale", "float32"),
    "INT8 without a scale": (layer(None, weight=INT8), "'l'", "lacks weight_scale"),
    "two scales": (layer(None, weight=FP8, weight_scale=ONE, scale_weight=ONE), "l.scale_weight", "not define"),
}

COMPANIONS: dict[str, tuple[Tensors, str, str]] = {
    "pre_quant_scale": (int8(pre_quant_scale=torch.ones(64)), "l.pre_quant_scale", "int8_tensorwise"),
    "weight_zeros": (int8(weight_zeros=ROWS), "l.weight_zeros", "zero points"),
    "weight_scale_2": (int8(weight_scale_2=ONE), "l.weight_scale_2", "not define"),
    "weight_codebook": (int8(weight_codebook=ROWS), "l.weight_codebook", "not define"),
    "weight_s_rel": (int8(weight_s_rel=ROWS), "l.weight_s_rel", "not define"),
    "weight_scale_inv": (int8(weight_scale_inv=ONE), "l.weight_scale_inv", "Hugging Face"),
    "legacy name": (int8(scale_weight=ROWS), "l.scale_weight", "not define"),
    "anything else": (int8(offsets=ROWS), "l.offsets", "not define"),
    "anything deeper": (int8() | {"l.adapter.weight": ROWS}, "l.adapter.weight", "not define"),
}

MARKERS: dict[str, tuple[Tensors, str, str]] = {
    "unknown field": (int8({**INT8_MARKER, "quarot": True}), "'l'", "'quarot'"),
    "unknown format": (int8({"format": "float8_e4m3fn_rowwise"}), "'l'", "'float8_e4m3fn_rowwise'"),
    "no format": (int8({}), "'l'", "None"),
    "group of another type": (int8({**INT8_MARKER, "convrot": True, "convrot_groupsize": 16.0}), "'l'", "16.0"),
    "group that does not divide": (int8({**INT8_MARKER, "convrot": True}), "'l'", "rotation groups of 256"),
    "group without a matrix": (int8({**INT8_MARKER, "convrot": True, "convrot_groupsize": 32}), "'l'", "32"),
    "rotated FP8": (
        layer({"format": "float8_e4m3fn", "convrot": True}, weight=FP8, weight_scale=ONE),
        "'l'",
        "float8_e4m3fn cannot be",
    ),
    "huge blocks": (int8({**BLOCKS, "group_size": 2**28}, weight_scale=torch.ones(1, 1)), "'l'", "268435456"),
    "huge number": (int8({**BLOCKS, "group_size": 10**400}), "'l'", "group_size"),
    "larger original": (int8({**INT8_MARKER, "orig_shape": [9999, 2]}), "'l'", "9999x2"),
    "smaller original": (int8({**INT8_MARKER, "orig_shape": [16, 64]}), "'l'", "16x64"),
    "original of three dimensions": (int8({**INT8_MARKER, "orig_shape": [1, 32, 64]}), "'l'", "1x32x64"),
    "original without dimensions": (int8({**INT8_MARKER, "orig_shape": []}), "'l'", "scalar"),
    "MXFP8 of other groups": (
        written("mxfp8") | {"l.comfy_quant": json_tensor({"format": "mxfp8", "group_size": 16})},
        "'l'",
        "groups of 16",
    ),
    "not bytes": (int8() | {"l.comfy_quant": ROWS}, "'l'", "float32 [32, 1]"),
    "64 kB and more": (int8() | {"l.comfy_quant": torch.zeros(65537, dtype=torch.uint8)}, "'l'", "65536"),
    "deep": (int8() | {"l.comfy_quant": byte_tensor(b'{"a":' * 900 + b"1" + b"}" * 900)}, "'l'", "not a JSON object"),
    "no weight": ({"l.comfy_quant": json_tensor(INT8_MARKER)}, "'l'", "no weight"),
    "experts that do not fit": (int8({**INT8_MARKER, "num_experts": 4}), "'l'", "does not fit"),
}

SCALES: dict[str, tuple[Tensors, str, str]] = {
    "missing": (layer({"format": "float8_e4m3fn"}, weight=FP8), "'l'", "lacks weight_scale"),
    "missing of MXFP8": ({k: t for k, t in written("mxfp8").items() if "scale" not in k}, "'l'", "lacks weight_scale"),
    "another shape": (int8(weight_scale=torch.ones(7)), "l.weight_scale", "[7]"),
    "columns": (int8(weight_scale=torch.ones(1, 64)), "l.weight_scale", "[1, 64]"),
    "three dimensions": (int8(weight_scale=torch.ones(1, 1, 1)), "l.weight_scale", "[1, 1, 1]"),
    "another dtype": (int8(weight_scale=ROWS.double()), "l.weight_scale", "float64"),
    "whole numbers": (int8(weight_scale=ROWS.int()), "l.weight_scale", "int32"),
    "input scale of another shape": (int8(input_scale=torch.ones(3)), "l.input_scale", "[3]"),
    "block FP8 of another shape": (
        block_fp8() | {"l.weight_scale_inv": torch.ones(2, 1)},
        "l.weight_scale_inv",
        "Hugging Face block FP8",
    ),
}

VALUES: dict[str, tuple[Tensors, str, str]] = {
    "NaN": (int8(weight_scale=ROWS * float("nan")), "l.weight_scale", "not finite and above 0"),
    "infinite": (int8(weight_scale=ROWS * float("inf")), "l.weight_scale", "not finite and above 0"),
    "zero": (int8(weight_scale=ROWS * 0), "l.weight_scale", "not finite and above 0"),
    "negative": (int8(weight_scale=-ROWS), "l.weight_scale", "not finite and above 0"),
    "NaN of MXFP8": (
        written("mxfp8") | {"l.weight_scale": torch.full((128, 8), 255, dtype=torch.uint8)},
        "l.weight_scale",
        "not finite and above 0",
    ),
    "negative input scale": (int8(input_scale=-ONE), "l.input_scale", "not finite and above 0"),
}

STRUCTURES = {**FOREIGN, **COMPANIONS, **MARKERS, **SCALES}
REFUSED = {**STRUCTURES, **VALUES}
ON_EVERY_CASE = pytest.mark.parametrize("case", REFUSED)


def save(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> Path:
    whole = {"other.weight": FLOAT, **tensors}
    save_file({name: tensor.clone().contiguous() for name, tensor in whole.items()}, path, metadata=metadata)
    return path


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UnreadableLayerError) as raised:
        action()
    text = str(raised.value)
    assert text.endswith("; start from the float model.") and "\n" not in text
    return text


@ON_EVERY_CASE
def test_unknown_schemes_are_never_dequantized(case: str, tmp_path: Path) -> None:
    tensors, name, what = REFUSED[case]
    recipe, source = Recipe(dequantize=True, profile="generic"), save(tensors, tmp_path / "m.safetensors")
    for text in (
        refusal(lambda: quantize_file(source, tmp_path / "q.safetensors", recipe)),
        refusal(lambda: quantize_state_dict({"other.weight": FLOAT, **tensors}, recipe)),
    ):
        assert name in text and what in text
    assert not (tmp_path / "q.safetensors").exists()


@pytest.mark.parametrize("case", STRUCTURES)
def test_unknown_schemes_are_never_copied(case: str) -> None:
    tensors, name, what = STRUCTURES[case]
    text = refusal(lambda: quantize_state_dict({"other.weight": FLOAT, **tensors}, Recipe(profile="generic")))
    assert name in text and what in text


@ON_EVERY_CASE
def test_comparing_refuses_the_same(case: str, tmp_path: Path) -> None:
    tensors, name, what = REFUSED[case]
    source = save(tensors, tmp_path / "m.safetensors")
    shape = tensors.get("l.weight", FLOAT).shape
    reference = save({"l.weight": torch.zeros(shape)}, tmp_path / "f.safetensors")
    text = refusal(lambda: compare_files(reference, source))
    assert name in text and what in text


@ON_EVERY_CASE
def test_inspection_lists_the_same_as_obstacles(case: str, tmp_path: Path) -> None:
    tensors, name, what = REFUSED[case]
    found = inspect_file(save(tensors, tmp_path / "m.safetensors"))
    assert any(name in text and what in text for text in found.obstacles)
    assert sum(entry.nbytes for entry in found.entries) == sum(t.nbytes for t in [FLOAT, *tensors.values()])


@pytest.mark.parametrize("name", every_layer())
def test_whole_layers_of_every_format_have_no_problem(name: str) -> None:
    found = quantized_layers(StateDictSource({"other.weight": FLOAT, **every_layer()[name]}))
    assert list(found) == ["l"]
    assert layer_problem(found["l"]) == ""


@pytest.mark.parametrize("name", recognised())
def test_packed_formats_are_dequantized_as_comfy_kitchen_does(name: str) -> None:
    layers, wanted = recognised()[name], dequantize_with_layout(name)
    floats = as_float(StateDictSource(layers), dequantize=True, dtype=torch.float32)
    torch.testing.assert_close(floats.read("l.weight"), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("asym_w4a8_int8", "weight_s_rel"), ("w6a8_int8", "weight_s_channel"), ("awq_w4a16", "weight_zeros")],
)
def test_scales_that_are_not_finite_are_refused(name: str, tensor: str) -> None:
    layers = recognised()[name]
    layers[f"l.{tensor}"] = torch.full_like(layers[f"l.{tensor}"].float(), torch.nan).to(layers[f"l.{tensor}"].dtype)
    floats = as_float(StateDictSource(layers), dequantize=True)
    assert f"'l.{tensor}', which is not finite" in refusal(lambda: floats.read("l.weight"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_fp8_is_dequantized_exactly(dtype: torch.dtype) -> None:
    tensors = block_fp8()
    tensors["l.weight_scale_inv"] = tensors["l.weight_scale_inv"].to(dtype)
    codes, scale = tensors["l.weight"], tensors["l.weight_scale_inv"].float()
    floats = as_float(StateDictSource(tensors), dequantize=True, dtype=torch.float32)
    assert list(floats.tensors) == ["l.weight"]
    expected = codes.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(floats.read("l.weight"), expected)


def test_block_fp8_ends_within_a_block() -> None:
    codes, scale = torch.ones(130, 200).to(E4M3), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    floats = as_float(StateDictSource(layer(None, weight=codes, weight_scale_inv=scale)), True, torch.float32)
    weight = floats.read("l.weight")
    assert weight.shape == (130, 200)
    assert [float(weight[row, column]) for row in (127, 128) for column in (127, 128)] == [1, 2, 3, 4]


@pytest.mark.parametrize("scale", [ONE, torch.ones(1), torch.ones(1, 1), torch.ones(32), torch.ones(32, 1)])
def test_scales_of_every_known_shape_are_read(scale: torch.Tensor) -> None:
    codes = torch.randint(-127, 128, (32, 64), dtype=torch.int8)
    source = StateDictSource(int8(weight=codes, weight_scale=scale * 0.5))
    assert torch.equal(as_float(source, True, torch.float32).read("l.weight"), codes * 0.5)


def test_nested_marker_is_read_as_comfyui_does() -> None:
    nested = {"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": 256}}
    tensors = written("int8_convrot")
    flat = as_float(StateDictSource(tensors), True, torch.float32).read("l.weight")
    tensors["l.comfy_quant"] = json_tensor(nested)
    assert torch.equal(as_float(StateDictSource(tensors), True, torch.float32).read("l.weight"), flat)


@pytest.mark.parametrize(
    ("text", "method"), [('{"quant_method": "gptq"}', "gptq"), ("[]", "null"), ("[" * 100_000, "null"), ("", "null")]
)
def test_quantization_config_in_the_header_is_refused(text: str, method: str, tmp_path: Path) -> None:
    source = save({}, tmp_path / "m.safetensors", {"quantization_config": text})
    for recipe in (Recipe(profile="generic"), Recipe(profile="generic", dequantize=True)):
        refused = refusal(lambda recipe=recipe: quantize_file(source, tmp_path / "q.safetensors", recipe))
        assert "quantization_config" in refused and method in refused
    assert any("quantization_config" in text and method in text for text in inspect_file(source).obstacles)


def test_block_fp8_config_is_removed_with_scales(tmp_path: Path) -> None:
    config = '{"quant_method": "fp8", "weight_block_size": [128, 128]}'
    source = save(block_fp8(), tmp_path / "m.safetensors", {"quantization_config": config, "note": "kept"})
    with pytest.raises(AlreadyQuantizedError, match="Hugging Face block FP8"):
        quantize_file(source, tmp_path / "q.safetensors", Recipe(profile="generic"))
    quantize_file(source, tmp_path / "q.safetensors", Recipe(profile="generic", dequantize=True))
    metadata = inspect_file(tmp_path / "q.safetensors").metadata
    assert "quantization_config" not in metadata and metadata["note"] == "kept"


def test_damaged_header_entry_is_refused_and_an_obstacle(tmp_path: Path) -> None:
    source = save(int8(), tmp_path / "m.safetensors", {"_quantization_metadata": '{"layers": 1}'})
    assert "_quantization_metadata" in refusal(
        lambda: quantize_file(source, tmp_path / "q.safetensors", Recipe(dequantize=True))
    )
    assert any("_quantization_metadata" in text for text in inspect_file(source).obstacles)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_no_real_model_looks_foreign(name: str, dtype: torch.dtype) -> None:
    class Source(StateDictSource):
        def __init__(self) -> None:
            super().__init__({})
            self.tensors = {key: Spec(dtype, shape) for key, shape in shapes(name).items()}

    found = quantized_layers(Source())
    assert bool(found) == (dtype == torch.float8_e4m3fn)
    assert [problem for layer in found.values() if (problem := layer_problem(layer))] == []


def test_read_errors_are_not_marker_faults() -> None:
    class Unreadable(StateDictSource):
        def read(self, name: str) -> torch.Tensor:
            raise CheckpointError("The disk is gone.")

    with pytest.raises(CheckpointError, match="disk is gone"):
        quantized_layers(Unreadable(int8()))


def test_deeply_nested_names_cost_no_time() -> None:
    class Source(StateDictSource):
        def __init__(self) -> None:
            super().__init__({})
            self.tensors = {"a." * depth + "weight": Spec(E4M3, (4, 4)) for depth in range(1, 3000)}

    found = quantized_layers(Source())
    assert len(found) == 2999
    assert sum(len(layer.names) for layer in found.values()) == 2999


def test_legacy_names_are_read_only_without_a_marker() -> None:
    legacy = layer(None, weight=FP8, scale_weight=ONE * 0.5, scale_input=ONE)
    floats = as_float(StateDictSource({**legacy, "scaled_fp8": torch.zeros(0).to(E4M3)}), True, torch.float32)
    assert list(floats.tensors) == ["l.weight"]
    found = quantized_layers(StateDictSource(layer({"format": "float8_e4m3fn"}, weight=FP8, scale_weight=ONE)))
    assert "'l.scale_weight'" in layer_problem(found["l"])
