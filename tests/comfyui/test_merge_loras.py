"""merge_loras of the quantize nodes in a real ComfyUI: LoRAs merged before quantizing, and LoRAs that stay on top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FORMATS = ("int8_convrot", "w4a8")
RECIPES = {"nearest": {}, "calibrated": {"rounding": "calibrated"}}


@pytest.fixture(scope="module", params=FORMATS)
def result(
    request: pytest.FixtureRequest, host: Host, known_formats: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    fmt = request.param
    if fmt not in known_formats:
        pytest.skip(f"this ComfyUI does not know {fmt}")
    source = example_model("digits_wan.safetensors")
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    output = tmp_path_factory.mktemp("output")
    function = "tests.comfyui.programs.merge_loras:merge_into_model"
    return host.call(function, source=source, table=table, output=output, fmt=fmt) | {"fmt": fmt}


@pytest.mark.parametrize("rounding", RECIPES)
def test_merging_equals_quantizing_merged_file(result: dict[str, Any], rounding: str, tmp_path: Path) -> None:
    """ModelSave merges the LoRA in float32, as ComfyUI loads the model on a CPU; the source is in bfloat16."""
    with safe_open(example_model("digits_wan.safetensors"), "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    prefix = "model.diffusion_model."
    merged = {name.removeprefix(prefix): t for name, t in load_file(result["float_file"]).items()}
    save_file({name: t.to(dtypes[name]) for name, t in merged.items()}, tmp_path / "merged.safetensors")
    statistics = Calibration.load(result["calibration_file"]) if rounding == "calibrated" else None
    recipe = Recipe(format=result["fmt"]).with_values(RECIPES[rounding])
    quantize_file(tmp_path / "merged.safetensors", tmp_path / "q.safetensors", recipe, statistics=statistics)
    expected, tensors = load_file(tmp_path / "q.safetensors"), load_file(result[rounding]["path"])
    assert tensors.keys() == expected.keys()
    assert [name for name, t in tensors.items() if not torch.equal(t, expected[name])] == []


@pytest.mark.parametrize("rounding", RECIPES)
def test_merged_model_carries_no_patches(result: dict[str, Any], rounding: str) -> None:
    assert result[rounding]["patches"] == 0
    assert result["merges"] == result["source_patches"] > 0, "each weight is merged once"
    assert result["source_equal"]


@pytest.mark.parametrize("rounding", RECIPES)
def test_saved_and_copied_model_samples_identically(result: dict[str, Any], rounding: str) -> None:
    assert result[rounding]["copy_equal"]
    assert result[rounding]["reloaded_equal"]


def test_merging_keeps_calibrated_codes(result: dict[str, Any]) -> None:
    assert result["calibrated"]["error"] < result["kept"]["error"]
    assert result["calibrated"]["error"] < result["nearest"]["error"] < result["effect"]


def test_header_names_merged_patches(result: dict[str, Any]) -> None:
    with safe_open(result["calibrated"]["path"], "pt") as file:
        provenance = json.loads(file.metadata()["calibrated_rounding"])
    assert provenance["merged_first"]["blocks.0.self_attn.q.weight"] == ["lora 1"]
    assert len(provenance["merged_first"]) == result["source_patches"]
    assert "merged_patches" not in provenance
    with safe_open(result["kept"]["path"], "pt") as file:
        provenance = json.loads(file.metadata()["calibrated_rounding"])
    assert "merged_first" not in provenance
    assert provenance["merged_patches"] == result["source_patches"]


def test_report_states_merged_weights(result: dict[str, Any]) -> None:
    line = f"LoRAs and other patches of {result['source_patches']} weights were merged before quantizing."
    assert line in result["calibrated"]["report"] and line in result["calibrated"]["text"]
    assert "patches of 0 weights were merged" in result["none"]


def test_report_names_layers_to_be_requantized(result: dict[str, Any]) -> None:
    kept = result["kept"]
    layers = ["blocks.0.ffn.2", "blocks.0.self_attn.q", "blocks.1.ffn.2", "blocks.1.self_attn.q"]
    assert sorted(kept["lost"]) == layers
    for text in (kept["report"], kept["text"]):
        assert "LoRAs or other patches stay on 4 quantized layers: blocks.0." in text
    assert kept["report"].count("ComfyUI rounds it again") == len(layers)
    assert "stay on" not in result["calibrated"]["report"]


def test_another_lora_works_on_top(result: dict[str, Any]) -> None:
    assert result["top"] == {"changes": True, "removed": True, "codes_equal": True}


def test_merged_result_is_cached(result: dict[str, Any]) -> None:
    assert "nothing was rounded" in result["again"]
    assert "nothing was rounded" not in result["calibrated"]["text"]
    assert "nothing was rounded" not in result["kept"]["text"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("recorded without", ["recorded without the LoRAs", "5 layers", "record it again"]),
        ("recorded with others", ["recorded without the LoRAs", "blocks.0.ffn.0", "record it again"]),
        ("quantized", ["is quantized", "merge_loras needs float weights"]),
    ],
)
def test_refusals_name_the_way_out(result: dict[str, Any], case: str, words: list[str]) -> None:
    assert all(word in result["errors"][case] for word in words)
    assert "\n" not in result["errors"][case]


@pytest.fixture(scope="module")
def encoder(host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    function = "tests.comfyui.programs.merge_loras:merge_into_encoder"
    return host.call(function, output=tmp_path_factory.mktemp("encoder"))


T5_LAYER = "encoder.block.0.layer.0.SelfAttention.q"
CLIP_LAYER = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"


def test_merged_encoder_equals_quantized_merged_file(encoder: dict[str, Any], tmp_path: Path) -> None:
    quantize_file(encoder["merged_file"], tmp_path / "q.safetensors", Recipe(format="int8_row"))
    expected, tensors = load_file(tmp_path / "q.safetensors"), load_file(encoder["path"])
    assert tensors.keys() == expected.keys()
    assert [name for name, t in tensors.items() if not torch.equal(t, expected[name])] == []


def test_patches_of_float_encoders_stay(encoder: dict[str, Any]) -> None:
    assert encoder["patches"] == [f"{CLIP_LAYER}.weight"]
    assert encoder["patches_kept"] == [f"{CLIP_LAYER}.weight", f"t5xxl.transformer.{T5_LAYER}.weight"]
    assert encoder["source_patches"] == 2
    assert "patches of 1 weights were merged" in encoder["report"]
    assert encoder["lost"] == [T5_LAYER]


def test_encoder_calibration_without_patches_is_refused(encoder: dict[str, Any]) -> None:
    assert "recorded without the LoRAs" in encoder["error"]
    assert T5_LAYER in encoder["error"]
    with safe_open(encoder["path"], "pt") as file:
        provenance = json.loads(file.metadata()["calibrated_rounding"])
    assert provenance["merged_first"] == {f"{T5_LAYER}.weight": ["diff 0.5"]}
