"""Quantize Model and Save Quantized Model in a real ComfyUI: how the quantized model samples, copies and saves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, plan_file, quantize_file
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.marker import SUFFIX, Marker
from calibrated_rounding.tests.comfyui.fp8 import OPTIONS, both_ways
from calibrated_rounding.tools.comfyui import Host, example_model
from calibrated_rounding.tools.comfyui.workflows import table as read_table
from safetensors import safe_open
from safetensors.torch import load_file

Results = dict[str, dict[str, Any]]


def has_fp8(fmt: str) -> bool:
    return fmt.startswith("float8")


RUNS = both_ways(FORMATS, has_fp8)
PATCHED = both_ways(["int8_row", "float8_e4m3fn", "int8_blockwise", "w6a8", "w4a8", "nvfp4"], has_fp8)


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    return {"source": example_model("digits_wan.safetensors"), "table": table}


@pytest.fixture(scope="module")
def results(
    host: Host, known_formats: list[str], inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Results:
    """Every format that this ComfyUI knows, quantized in the graph, by way (fp8.py)."""
    formats = {"emulated": known_formats, "fp8_compute": list(filter(has_fp8, known_formats))}
    function = "tests.comfyui.programs.quantize_model:quantize_in_formats"
    return {
        way: host.call(function, **inputs, output=tmp_path_factory.mktemp(way), formats=formats[way], options=options)
        for way, options in OPTIONS.items()
    }


@pytest.mark.parametrize(("fmt", "way"), RUNS)
def test_saved_file_samples_identically(results: Results, fmt: str, way: str) -> None:
    assert results[way]["formats"][fmt]["reloaded_equal"]
    assert results[way]["formats"][fmt]["warnings"] == []


@pytest.mark.parametrize("way", OPTIONS)
def test_source_model_stays_unchanged(results: Results, way: str) -> None:
    assert results[way]["source_unchanged"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_quantized_model_is_half_the_size(results: Results, fmt: str) -> None:
    assert results["emulated"]["formats"][fmt]["size"] < 0.55 * results["emulated"]["source_size"]


@pytest.mark.parametrize(("fmt", "way"), RUNS)
def test_quantized_model_can_be_copied(results: Results, fmt: str, way: str) -> None:
    result = results[way]["formats"][fmt]
    assert result["deep_copy"]
    assert result["multigpu_copy"]
    assert result["equal_after_copies"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_report_names_every_quantized_layer(results: Results, fmt: str) -> None:
    result = results["emulated"]["formats"][fmt]
    names = {layer["name"] for layer in read_table(result["shown"]["calibrated_rounding"][0]["layers"])}
    assert names == result["layers"].keys()
    assert all(name in result["report"] for name in names)
    assert result["shown"]["text"][0].splitlines()[0] in result["report"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_saved_header_keeps_source_and_recipe(results: Results, fmt: str) -> None:
    result = results["emulated"]["formats"][fmt]
    with safe_open(example_model("digits_wan.safetensors"), "pt") as source, safe_open(result["path"], "pt") as file:
        metadata, source_metadata = file.metadata(), source.metadata()
    assert source_metadata.items() <= metadata.items()
    assert json.loads(metadata["calibrated_rounding"])["recipe"]["format"] == fmt
    assert json.loads(metadata["_quantization_metadata"])["layers"].keys() == result["layers"].keys()


@pytest.mark.parametrize(("fmt", "way"), RUNS)
def test_model_save_writes_same_tensors(results: Results, fmt: str, way: str) -> None:
    path = Path(results[way]["formats"][fmt]["path"])
    ours, stock = load_file(path), load_file(path.with_name(f"stock_{fmt}_00001_.safetensors"))
    assert {key.removeprefix("model.diffusion_model.") for key in stock} == ours.keys()
    for key, tensor in ours.items():
        other = stock[f"model.diffusion_model.{key}"]
        if key.endswith(SUFFIX):
            assert Marker.from_tensor(key, other) == Marker.from_tensor(key, tensor)
        else:
            # ComfyUI's own node saves kept tensors in the dtype that it computes in.
            assert bytes_of(other if other.dtype.itemsize == 1 else other.to(tensor.dtype)) == bytes_of(tensor)


@pytest.mark.parametrize(("fmt", "way"), RUNS)
def test_graph_saves_what_the_shell_writes(
    results: Results, inputs: dict[str, Any], fmt: str, way: str, tmp_path: Path
) -> None:
    """Tensors, dtypes and sizes, as planned: ComfyUI loads the bfloat16 file in float32 on a CPU."""
    report = quantize_file(inputs["source"], tmp_path / "shell.safetensors", Recipe(format=fmt))
    shell, graph = load_file(tmp_path / "shell.safetensors"), load_file(results[way]["formats"][fmt]["path"])
    assert {key: bytes_of(tensor) for key, tensor in shell.items()} == {key: bytes_of(t) for key, t in graph.items()}
    assert {key: tensor.dtype for key, tensor in shell.items()} == {key: tensor.dtype for key, tensor in graph.items()}
    shown = results[way]["formats"][fmt]["shown"]["calibrated_rounding"][0]["totals"]
    size = sum(tensor.nbytes for tensor in graph.values())
    assert (
        size
        == report.totals.bytes_after
        == shown["bytes_after"]
        == plan_file(inputs["source"], Recipe(format=fmt)).nbytes
    )


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module", params=PATCHED, ids="-".join)
def patched(
    request: pytest.FixtureRequest,
    host: Host,
    known_formats: list[str],
    inputs: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    fmt, way = request.param
    if fmt not in known_formats:
        pytest.skip(f"this ComfyUI does not know {fmt}")
    function = "tests.comfyui.programs.quantize_model:patch_models"
    output = tmp_path_factory.mktemp("output")
    return host.call(function, **inputs, output=output, fmt=fmt, options=OPTIONS[way]) | {"way": way, "fmt": fmt}


def test_patches_do_not_change_quantized_weights(patched: dict[str, Any]) -> None:
    assert patched["weights_without_lora"]


LORA_ERROR = {"emulated": 0.5, "fp8_compute": 0.7}
"""Largest latent error with the LoRA, as a share of what the LoRA changes. With FP8 compute the inputs are rounded too:
nearest `float8_e4m3fn` then has twice the error without any LoRA."""


def test_lora_works_before_and_after_quantizing(patched: dict[str, Any]) -> None:
    share = LORA_ERROR[patched["way"]] * patched["lora_effect"]
    # With 4 bits the error without a LoRA is about as large as the LoRA's effect; a LoRA that is lost adds to both.
    lost = math.hypot(patched["lora_effect"], patched["plain_error"])
    assert patched["lora_error"] < (0.85 * lost if patched["fmt"] in ("w4a8", "nvfp4") else share)
    assert patched["before_equals_after"]


def test_lora_can_be_removed(patched: dict[str, Any]) -> None:
    assert patched["without_lora_again"]
    assert patched["source_unchanged"]


def test_saving_merges_lora_and_states_it(patched: dict[str, Any]) -> None:
    assert patched["saved_equal"]
    with safe_open(patched["path"], "pt") as file:
        assert json.loads(file.metadata()["calibrated_rounding"])["merged_patches"] > 0


def test_sampling_patch_survives_quantization(patched: dict[str, Any]) -> None:
    assert patched["sampling_patch_equal"]
    assert patched["sampling_patch_changes"]


def test_compiled_source_compiles_quantized_model(host: Host, inputs: dict[str, Any], tmp_path: Path) -> None:
    function = "tests.comfyui.programs.quantize_model:quantize_compiled"
    result = host.call(function, **inputs, output=tmp_path, fmt="int8_blockwise")
    errors = result["errors"]
    assert result["equal"]
    assert result["graphs"] > 0
    assert errors["replaced"].startswith(
        "QuantError: 'diffusion_model' of this model was replaced by a compiled module"
    )
    for name in ("nameless", "object", "no options"):
        assert errors[name].startswith(
            "QuantError: This model was compiled in a way that keeps its float weights; put "
        )


OPTIMIZERS = ("original", "adamw", "radam", "feedback")


@pytest.fixture(scope="module")
def learned(host: Host, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    function = "tests.comfyui.programs.quantize_model:quantize_with_optimizers"
    return host.call(function, **inputs, output=tmp_path_factory.mktemp("output"), optimizers=OPTIMIZERS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_beats_nearest(learned: dict[str, Any], optimizer: str) -> None:
    assert learned[optimizer]["better"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_repeated_quantization_uses_cache(learned: dict[str, Any], optimizer: str) -> None:
    assert ["nothing was rounded" in text for text in learned[optimizer]["texts"]] == [False, True]
    assert learned[optimizer]["equal"]


OUTSIDE = ("../x", "/elsewhere/x", "diffusion_models/../../x")


@pytest.fixture(scope="module")
def refused(host: Host, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return host.call(
        "tests.comfyui.programs.quantize_model:refuse_and_requantize",
        source=inputs["source"],
        output=tmp_path_factory.mktemp("base") / "output",
        prefixes=OUTSIDE,
    )


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("profile", ["flux", "wan"]),
        ("override", ["ffn", "REGEX=FORMAT"]),
        ("twice", ["already quantized", "dequantize"]),
        ("not quantized", ["quantize node"]),
        ("../x", ["../x", "outside the output folder"]),
        ("/elsewhere/x", ["/elsewhere/x", "outside the output folder"]),
        ("diffusion_models/../../x", ["outside the output folder"]),
    ],
)
def test_refusals_are_one_sentence(refused: dict[str, Any], case: str, words: list[str]) -> None:
    assert all(word in refused["errors"][case] for word in words)
    assert "\n" not in refused["errors"][case]


def test_refused_runs_write_no_file(refused: dict[str, Any]) -> None:
    assert refused["files"] == []


def test_quantized_model_is_requantized_on_request(refused: dict[str, Any]) -> None:
    assert refused["requantized_layers"] == 19


def test_linked_recipe_replaces_node_settings(refused: dict[str, Any]) -> None:
    assert refused["recipe_formats"] == ["float8_e5m2"]
