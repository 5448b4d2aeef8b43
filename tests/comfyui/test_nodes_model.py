"""Quantize Model and Save Quantized Model in a real ComfyUI: what the graph's model is, does, and becomes on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tests.comfyui import workflows
from calibrated_rounding.tests.comfyui.harness import PACK, Host, example_model
from safetensors import safe_open
from safetensors.torch import load_file

SETUP = """
import os, folder_paths, pack_nodes
from pack_nodes import call, NEAREST
pack = pack_nodes.load(root)
folder_paths.set_output_directory(output)
model, _ = inside.load_unet(source)

def sample(patcher):
    return pack_nodes.sample(patcher, table)

def quantize(patcher, fmt, rounding=NEAREST, **settings):
    return call(pack.QuantizeModel, model=patcher, format=fmt, profile="auto", rounding=rounding, **settings)
"""

FORMATS_CODE = (
    SETUP
    + """
import comfy.model_management as management
from comfy_extras.nodes_model_merging import ModelSave
float_before = sample(model)
outputs["float size"] = model.model_size()
for fmt in formats:
    node = quantize(model, fmt)
    made = node.args[0]
    latents = sample(made)
    path = call(pack.SaveQuantizedModel, model=made, filename_prefix=f"diffusion_models/{fmt}").args[0]
    reloaded, warnings = inside.load_unet(path)
    deep = made.clone(force_deepcopy=True)
    multigpu = made.deepclone_multigpu()
    ModelSave().save(made, f"diffusion_models/stock_{fmt}")
    outputs[fmt] = {
        "path": path,
        "warnings": warnings,
        "size": made.model_size(),
        "layers": inside.quantized_layers(made.model.diffusion_model),
        "reloaded equal": torch.equal(latents, sample(reloaded)),
        "deep copy": deep.model is not made.model and torch.equal(latents, sample(deep)),
        "multigpu copy": multigpu.model is not made.model and torch.equal(latents, sample(multigpu)),
        "equal after copies": torch.equal(latents, sample(made)),
        "report": node.args[1],
        "shown": node.ui,
    }
outputs["float unchanged"] = torch.equal(float_before, sample(model))
"""
)


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return load_file(example_model("digits_conditioning.safetensors"))["conditioning"]


@pytest.fixture(scope="module")
def inputs(table: torch.Tensor) -> dict[str, Any]:
    return {"root": str(PACK), "source": str(example_model("digits_wan.safetensors")), "table": table}


@pytest.fixture(scope="module")
def made(host: Host, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every format: quantized in the graph, sampled, saved, loaded again and copied."""
    return host.run(FORMATS_CODE, **inputs, output=str(tmp_path_factory.mktemp("output")), formats=list(FORMATS))


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_graphs_model_gives_the_latents_of_the_saved_file(made: dict[str, Any], fmt: str) -> None:
    assert made[fmt]["reloaded equal"]
    assert made[fmt]["warnings"] == []


def test_the_source_model_stays_as_it_was(made: dict[str, Any]) -> None:
    assert made["float unchanged"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_model_is_as_small_as_its_weights(made: dict[str, Any], fmt: str) -> None:
    assert made[fmt]["size"] < 0.55 * made["float size"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_host_can_copy_the_model(made: dict[str, Any], fmt: str) -> None:
    assert made[fmt]["deep copy"]
    assert made[fmt]["multigpu copy"]
    assert made[fmt]["equal after copies"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_report_and_totals_come_with_the_model(made: dict[str, Any], fmt: str) -> None:
    report = made[fmt]["shown"]["calibrated_rounding"][0]
    assert {layer["name"] for layer in workflows.table(report["layers"])} == made[fmt]["layers"].keys()
    assert all(layer["name"] in made[fmt]["report"] for layer in workflows.table(report["layers"]))
    assert made[fmt]["shown"]["text"][0].splitlines()[0] in made[fmt]["report"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_saved_file_keeps_the_sources_header_and_tells_the_recipe(made: dict[str, Any], fmt: str) -> None:
    with safe_open(example_model("digits_wan.safetensors"), "pt") as source, safe_open(made[fmt]["path"], "pt") as file:
        metadata, before = file.metadata(), source.metadata()
    assert before.items() <= metadata.items()
    assert json.loads(metadata["calibrated_rounding"])["recipe"]["format"] == fmt
    assert json.loads(metadata["_quantization_metadata"])["layers"].keys() == made[fmt]["layers"].keys()


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_hosts_own_save_writes_the_same_tensors(made: dict[str, Any], fmt: str) -> None:
    path = Path(made[fmt]["path"])
    ours, stock = load_file(path), load_file(path.with_name(f"stock_{fmt}_00001_.safetensors"))
    assert {key.removeprefix("model.diffusion_model.") for key in stock} == ours.keys()
    assert all(bytes_of(stock[f"model.diffusion_model.{key}"]) == bytes_of(tensor) for key, tensor in ours.items())


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


PATCHES_CODE = (
    SETUP
    + """
import comfy.sd
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

def with_lora(patcher):
    return comfy.sd.load_lora_for_models(patcher, None, dict(lora), 1.0, 0.0)[0]

def error(a, b):
    return float((a - b).norm() / b.norm())

lora, generator = {}, torch.Generator().manual_seed(1)
for key, weight in model.model.state_dict().items():
    if key.endswith(("self_attn.q.weight", "ffn.2.weight")):
        name = key.removesuffix(".weight")
        lora[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.1
        lora[f"{name}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=generator) * 0.1
        lora[f"{name}.alpha"] = torch.tensor(4.0)
base, float_lora = sample(model), sample(with_lora(model))
plain = quantize(model, fmt).args[0]
plain_latents = sample(plain)
sample(with_lora(model))  # leaves the LoRA in the weights of the loaded float model
outputs["weights read without the lora"] = torch.equal(sample(quantize(model, fmt).args[0]), plain_latents)
before, after = quantize(with_lora(model), fmt).args[0], with_lora(plain)
outputs["lora kept"] = error(sample(before), float_lora)
outputs["lora effect"] = error(base, float_lora)
outputs["before equals after"] = torch.equal(sample(before), sample(after))
path = call(pack.SaveQuantizedModel, model=before, filename_prefix="diffusion_models/lora").args[0]
outputs["merged save"] = torch.equal(sample(inside.load_unet(path)[0]), sample(before))
outputs["path"] = path
outputs["without lora again"] = torch.equal(sample(plain), plain_latents)
(shifted,) = ModelSamplingSD3().patch(model, 5.0)
(shifted_after,) = ModelSamplingSD3().patch(plain, 5.0)
latents = sample(quantize(shifted, fmt).args[0])
outputs["sampling patch kept"] = torch.equal(latents, sample(shifted_after)) and not torch.equal(latents, plain_latents)
outputs["float unchanged"] = torch.equal(base, sample(model))
"""
)


@pytest.fixture(scope="module", params=["int8_row", "float8_e4m3fn", "int8_blockwise"])
def patched(
    request: pytest.FixtureRequest, host: Host, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return host.run(PATCHES_CODE, **inputs, output=str(tmp_path_factory.mktemp("output")), fmt=request.param)


def test_original_weights_are_quantized_whatever_is_patched(patched: dict[str, Any]) -> None:
    assert patched["weights read without the lora"]


def test_a_lora_works_before_and_after_quantizing(patched: dict[str, Any]) -> None:
    assert patched["lora kept"] < patched["lora effect"] / 2
    assert patched["before equals after"]


def test_a_lora_comes_off_again(patched: dict[str, Any]) -> None:
    assert patched["without lora again"]
    assert patched["float unchanged"]


def test_saving_merges_a_lora_and_says_so(patched: dict[str, Any]) -> None:
    assert patched["merged save"]
    with safe_open(patched["path"], "pt") as file:
        assert json.loads(file.metadata()["calibrated_rounding"])["merged_patches"] > 0


def test_a_sampling_patch_survives(patched: dict[str, Any]) -> None:
    assert patched["sampling patch kept"]


COMPILED_CODE = (
    SETUP
    + """
from functools import partial
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY, TORCH_COMPILE_KWARGS

compiled = []
def backend(graph, inputs):
    compiled.append(graph)
    return graph

plain = sample(quantize(model, fmt).args[0])
source = model.clone()
set_torch_compile_wrapper(source, backend=backend, keys=["diffusion_model.blocks.1"])  # all of it takes long
outputs["quantized"] = torch.equal(sample(quantize(source, fmt).args[0]), plain)
outputs["graphs"] = len(compiled)
replaced = model.clone()
replaced.add_object_patch("diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend=backend))
nameless = source.clone()
nameless.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY)
callable_object, without_options = nameless.clone(), source.clone()
nameless.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY, lambda executor, *args, **kwargs: executor(*args))
callable_object.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY, partial(print))
del without_options.model_options[TORCH_COMPILE_KWARGS]
refused = {"replaced": replaced, "nameless": nameless, "object": callable_object, "no options": without_options}
for name, patcher in refused.items():
    try:
        quantize(patcher, fmt)
    except Exception as error:
        outputs[name] = f"{type(error).__name__}: {error}"
"""
)


def test_what_compiles_the_source_compiles_the_quantized_model(
    host: Host, inputs: dict[str, Any], tmp_path: Path
) -> None:
    ran = host.run(COMPILED_CODE, **inputs, output=str(tmp_path), fmt="int8_blockwise")
    assert ran["quantized"]
    assert ran["graphs"] > 0
    assert ran["replaced"].startswith("QuantError: 'diffusion_model' of this model was replaced by a compiled module")
    for name in ("nameless", "object", "no options"):
        assert ran[name].startswith("QuantError: This model was compiled in a way that keeps its float weights; put ")


ROUNDING_CODE = (
    SETUP
    + """
for optimizer in optimizers:
    rounding = pack_nodes.svd(optimizer)
    first, second = (quantize(model, "int8_row", rounding) for _ in range(2))
    texts = [node.ui["text"][0] for node in (first, second)]
    pairs = [layer["errors"]["projected"] for layer in pack_nodes.layers(first)]
    outputs[optimizer] = {
        "better": all(pair["error"] <= pair["nearest"] for pair in pairs),
        "kept": ["rounded" in text for text in texts],
        "equal": torch.equal(sample(first.args[0]), sample(second.args[0])),
    }
"""
)
OPTIMIZERS = ("original", "adamw", "radam", "feedback")


@pytest.fixture(scope="module")
def rounded(host: Host, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return host.run(ROUNDING_CODE, **inputs, output=str(tmp_path_factory.mktemp("output")), optimizers=OPTIMIZERS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_works_where_nodes_run(rounded: dict[str, Any], optimizer: str) -> None:
    assert rounded[optimizer]["better"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_work_is_done_once(rounded: dict[str, Any], optimizer: str) -> None:
    assert rounded[optimizer]["kept"] == [False, True]
    assert rounded[optimizer]["equal"]


REFUSALS_CODE = (
    SETUP
    + """
def refusal(action):
    try:
        action()
    except Exception as error:
        return str(error)

quantized = quantize(model, "int8_row").args[0]
outputs["profile"] = refusal(
    lambda: call(pack.QuantizeModel, model=model, format="int8_row", profile="flux", rounding=NEAREST)
)
outputs["override"] = refusal(lambda: quantize(model, "int8_row", overrides="ffn"))
outputs["twice"] = refusal(lambda: quantize(quantized, "int8_row"))
outputs["not quantized"] = refusal(lambda: call(pack.SaveQuantizedModel, model=model, filename_prefix="x"))
for prefix in ("../x", "/elsewhere/x", "diffusion_models/../../x"):
    outputs[prefix] = refusal(lambda: call(pack.SaveQuantizedModel, model=quantized, filename_prefix=prefix))
outputs["written"] = [name for _, _, names in os.walk(os.path.dirname(output)) for name in names]
again = quantize(quantized, "float8_e4m3fn", dequantize=True)
outputs["dequantized"] = len(pack_nodes.layers(again))
recipe = call(pack.QuantizationRecipe, format="float8_e5m2", profile="auto", rounding=NEAREST).args[0]
by_recipe = pack_nodes.layers(quantize(model, "int8_row", recipe=recipe))
outputs["by recipe"] = sorted({layer["format"] for layer in by_recipe})
"""
)


@pytest.fixture(scope="module")
def refused(host: Host, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return host.run(REFUSALS_CODE, **inputs, output=str(tmp_path_factory.mktemp("base") / "output"))


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
def test_refusals_name_the_thing_in_one_line(refused: dict[str, Any], case: str, words: list[str]) -> None:
    assert all(word in refused[case] for word in words)
    assert "\n" not in refused[case]


def test_nothing_is_written_by_what_is_refused(refused: dict[str, Any]) -> None:
    assert refused["written"] == []


def test_a_quantized_model_can_be_quantized_anew_on_request(refused: dict[str, Any]) -> None:
    assert refused["dequantized"] == 19


def test_a_linked_recipe_replaces_the_nodes_settings(refused: dict[str, Any]) -> None:
    assert refused["by recipe"] == ["float8_e5m2"]
