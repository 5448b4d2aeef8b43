"""Block-wise INT8 files in ComfyUI's own loaders: loaded, sampled, patched and saved with the pack, refused without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

MARKER = {"format": "int8_blockwise", "orig_dtype": "torch.bfloat16", "group_size": 128}
"""As convert-to-quant writes it."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped model and quantized copies of it.

    ours: by the engine, in int8_blockwise. convert_to_quant: the same codes with that converter's markers.
    checkpoint: the same in an all-in-one file. mixed: with int8_row layers. int8: in a stock format.
    """
    folder, source = tmp_path_factory.mktemp("blockwise"), example_model("digits_wan.safetensors")
    names = ("ours", "convert_to_quant", "checkpoint", "mixed", "int8")
    paths = {name: folder / f"{name}.safetensors" for name in names} | {"source": source}
    report = quantize_file(source, paths["ours"], Recipe(format="int8_blockwise"))
    quantize_file(source, paths["mixed"], Recipe(format="int8_blockwise", overrides=(("ffn", "int8_row"),)))
    quantize_file(source, paths["int8"], Recipe(format="int8_row"))
    tensors = load_file(paths["ours"])
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    converted = dict(tensors)
    for layer in report.layers:
        converted[f"{layer.name}.comfy_quant"] = torch.tensor(list(json.dumps(MARKER).encode()), dtype=torch.uint8)
        converted[f"{layer.name}.input_scale"] = torch.tensor(1.0)
    save_file(converted, paths["convert_to_quant"], metadata)
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in tensors.items()}
    vae = load_file(example_model("digits_vae.safetensors"))
    save_file(prefixed | {f"vae.{key}": tensor for key, tensor in vae.items()}, paths["checkpoint"], metadata)
    return paths


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return load_file(example_model("digits_conditioning.safetensors"))["conditioning"]


@pytest.fixture(scope="module")
def inputs(files: dict[str, Path], table: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"files": files, "table": table, "output": tmp_path_factory.mktemp("output")}


@pytest.fixture(scope="module")
def used(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.blockwise_files:use_files", **inputs)


def test_file_is_refused_without_pack(used: dict[str, Any]) -> None:
    assert used["without_pack"] == "KeyError: 'int8_blockwise'"


def test_every_layer_runs_pack_kernel(used: dict[str, Any]) -> None:
    assert used["warnings"] == []
    assert used["calls"] == 4 * used["layers"] > 0
    assert used["fallbacks"] == []
    assert 0 < used["error"] < 0.03


def test_convert_to_quant_files_load_without_input_scale(used: dict[str, Any]) -> None:
    assert used["convert_to_quant"] == {"warnings": [], "equal": True}


def test_all_in_one_checkpoint_loads(used: dict[str, Any]) -> None:
    assert used["checkpoint_equal"]


def test_lora_is_applied_and_removed(used: dict[str, Any]) -> None:
    lora = used["lora"]
    assert lora["error"] < lora["effect"] / 4
    assert lora["same_storage"], "requantized weights have the shapes and dtypes of the loaded ones"
    assert lora["sampled_again"]
    assert used["without_lora_again"]


def test_model_save_merges_lora(used: dict[str, Any]) -> None:
    assert used["lora"]["saved_equal"]


def test_weights_survive_dynamic_vram_copies(used: dict[str, Any]) -> None:
    assert used["copied"]
    assert used["gathered"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scale", "scale of shape [4, 1]; its blocks of 128 need [4, 2]"),
        ("size", "blocks of 32"),
        ("field", "'quarot'"),
        ("shape", "[128, 256]"),
    ],
)
def test_inconsistent_layer_is_named(used: dict[str, Any], name: str, words: str) -> None:
    assert used["broken"][name].startswith("ValueError: Layer ")
    assert "blocks.1.ffn.0'" in used["broken"][name]
    assert words in used["broken"][name]


def test_registration_can_be_undone_and_repeated(used: dict[str, Any]) -> None:
    assert used["functions_restored"]
    assert used["unregistered"] == used["without_pack"]
    assert used["registered_again"]


@pytest.fixture(scope="module")
def others(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.blockwise_packs:meet_other_packs", **inputs)


def test_second_import_changes_nothing(others: dict[str, Any]) -> None:
    twice = others["imported_twice"]
    assert twice["distinct"] and twice["unchanged"] and twice["equal"]
    assert twice["warnings"] == []
    assert twice["layers"] == 19


def test_other_packs_may_wrap_same_function(others: dict[str, Any]) -> None:
    assert others["wrapped"] == dict.fromkeys(
        ("wrapped_by_other", "stays_in_chain", "passes_on", "wraps_other", "calls_other"), True
    )


def test_format_of_other_pack_stays(others: dict[str, Any]) -> None:
    taken = others["taken"]
    assert taken["untouched"]
    assert len(taken["warnings"]) == 1
    assert "another pack has registered int8_blockwise" in taken["warnings"][0]
    assert "LoadBlockwiseModel" not in taken["nodes"]


def test_layout_of_other_pack_is_not_used(others: dict[str, Any]) -> None:
    assert not others["active_with_other_layout"]


@pytest.fixture(scope="module")
def unknown_loader(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.blockwise_packs:run_with_unknown_loader", **inputs)


def test_unknown_loader_is_logged_once(unknown_loader: dict[str, Any]) -> None:
    (warning,) = (text for text in unknown_loader["warnings"] if "w6a8_int8" not in text)
    assert "cannot be taught int8_blockwise; Load Block-wise Model" in warning
    assert "LoadBlockwiseModel" in unknown_loader["nodes"]


def test_pack_loader_replaces_unknown_loader(unknown_loader: dict[str, Any]) -> None:
    assert {layer["layout"] for layer in unknown_loader["layers"].values()} == {"BlockWiseINT8Layout"}
    layouts = {layer["layout"] for layer in unknown_loader["mixed_layers"].values()}
    assert layouts == {"BlockWiseINT8Layout", "TensorWiseINT8Layout"}
    assert unknown_loader["deep_copy"]
    assert unknown_loader["registered_later"] == ""
    assert unknown_loader["equal_to_registered"]


def test_format_unknown_to_comfyui_is_refused(unknown_loader: dict[str, Any]) -> None:
    assert unknown_loader["refused_unknown"].startswith("This ComfyUI does not know mxfp8")


def test_model_of_pack_loader_can_be_saved(unknown_loader: dict[str, Any], files: dict[str, Path]) -> None:
    assert unknown_loader["saved_equal"]
    saved, ours = load_file(unknown_loader["saved"]), load_file(files["ours"])
    for key, tensor in ours.items():
        if key.endswith((".weight", ".weight_scale", ".comfy_quant")) and tensor.dtype != torch.bfloat16:
            assert torch.equal(saved[f"model.diffusion_model.{key}"], tensor), key


def test_unloadable_format_is_not_quantized(unknown_loader: dict[str, Any]) -> None:
    for case, name in (("refused", "int8_blockwise"), ("refused_fallback", "int8_blockwise_64")):
        assert f"cannot be taught {name}" in unknown_loader[case]
        assert "the node Quantize" in unknown_loader[case] and "\n" not in unknown_loader[case]
    assert unknown_loader["stock_layers"] == 19


def test_comfyui_own_layer_tests_pass(host: Host) -> None:
    path = host.path / "tests-unit" / "comfy_quant" / "test_mixed_precision.py"
    if not path.is_file():
        pytest.skip(f"this ComfyUI has no {path.name}")
    result = host.call("tests.comfyui.programs.blockwise_layers:run_comfyui_tests", path=path)
    assert result["failed"] == []
    assert result["count"] > 5


def test_compiled_layer_adds_no_graph_break(host: Host) -> None:
    weight = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    layers = host.call("tests.comfyui.programs.blockwise_layers:compile_layers", weight=weight)
    assert all(layer["equal"] for layer in layers.values()), layers
    assert layers["int8_blockwise"]["breaks"] == layers["int8_blockwise_64"]["breaks"] <= layers["int8_row"]["breaks"]


def test_stock_layers_run_pack_kernels_on_request(
    host: Host, files: dict[str, Path], table: torch.Tensor, tmp_path: Path
) -> None:
    int8 = tmp_path / "int8.safetensors"
    quantize_file(files["source"], int8, Recipe(format="int8_convrot"))
    result = host.call("tests.comfyui.programs.blockwise_layers:run_stock_layers", int8=int8, table=table)
    assert result["calls_off"] == 0
    # Newer ComfyUIs fold an activation into some products, which the pack leaves to the others.
    assert 4 * result["layers"] * 0.8 < result["calls_on"] <= 4 * result["layers"]
    assert result["error"] < 0.02
    assert result["off_again_equal"]
