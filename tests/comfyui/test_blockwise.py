"""Block-wise INT8 files in ComfyUI's own loaders: loaded, sampled, patched and saved with the pack, refused without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.tests.comfyui.harness import PACK, Host, example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

CODE = """
import os, folder_paths, nodes, pack_nodes
import comfy.memory_management, comfy.ops, comfy.quant_ops, comfy.sd, comfy.utils
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_extras.nodes_model_merging import ModelSave
folder_paths.set_output_directory(output)
folder_paths.add_model_folder_path("checkpoints", os.path.dirname(whole))

def failure(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def error(a, b):
    return float((a - b).norm() / b.norm())

def sample(patcher):
    return pack_nodes.sample(patcher, table)

def with_lora(patcher):
    return comfy.sd.load_lora_for_models(patcher, None, dict(lora), 1.0, 0.0)[0]

def weights(patcher):
    parameters = patcher.model.diffusion_model.named_parameters()
    return {name: w for name, w in parameters if isinstance(w, QuantizedTensor)}

def described(patcher):
    found = {name: [w._qdata, w._params.scale] for name, w in weights(patcher).items()}
    return {name: [f"{t.dtype} {tuple(t.shape)}" for t in pair] for name, pair in found.items()}

before = (comfy.ops._load_quantized_module, comfy.ops._quantized_weight_state_dict)
outputs["without"] = failure(lambda: inside.load_unet(made))
pack_nodes.load(root)
from calibrated_rounding.kernels import layouts
from calibrated_rounding.nodes.host import registration
told = layouts.operations._warned

block_linear, calls = layouts.operations.ops.block_linear, []
def counted(x, *rest):
    calls.append(x.shape)
    return block_linear(x, *rest)
layouts.operations.ops.block_linear = counted

float_model, _ = inside.load_unet(source)
float_latents = sample(float_model)
model, outputs["warnings"] = inside.load_unet(made)
outputs["layers"] = len(weights(model))
latents = sample(model)
outputs["calls"] = len(calls)
outputs["error"] = error(latents, float_latents)
theirs, outputs["peer warnings"] = inside.load_unet(peer)
outputs["peer equal"] = torch.equal(latents, sample(theirs))
(aio, _, _) = nodes.CheckpointLoaderSimple().load_checkpoint(os.path.basename(whole))
outputs["checkpoint equal"] = torch.equal(latents, sample(aio))

lora, generator = {}, torch.Generator().manual_seed(1)
for key, weight in float_model.model.state_dict().items():
    if key.endswith(("self_attn.q.weight", "ffn.2.weight")):
        name = key.removesuffix(".weight")
        lora[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.1
        lora[f"{name}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=generator) * 0.1
        lora[f"{name}.alpha"] = torch.tensor(4.0)
wanted, plain = sample(with_lora(float_model)), described(model)
patched = with_lora(model)
merged = sample(patched)
outputs["lora"], outputs["lora effect"] = error(merged, wanted), error(float_latents, wanted)
outputs["lora described"] = described(patched) == plain
ModelSave().save(patched, "diffusion_models/merged")
outputs["lora again"] = torch.equal(sample(patched), merged)
merged_file, _ = inside.load_unet(f"{output}/diffusion_models/merged_00001_.safetensors")
outputs["lora saved"] = torch.equal(sample(merged_file), merged)
outputs["lora off"] = torch.equal(sample(model), latents)

weight = next(iter(weights(model).values()))
weight = QuantizedTensor(weight._qdata, weight._layout_cls, weight._params)
fresh = weight.requantize_from_float(weight.dequantize(), scale="recalculate", stochastic_rounding=7, inplace_ops=True)
outputs["copied"] = torch.equal(torch.empty_like(weight).copy_(fresh).dequantize(), fresh.dequantize())
size = comfy.memory_management.vram_aligned_size([weight])
(view,) = comfy.memory_management.interpret_gathered_like([weight], torch.zeros(size, dtype=torch.uint8))
view.copy_(weight)
outputs["gathered"] = torch.equal(view.dequantize(), weight.dequantize()) and view._params.block_size == 128
outputs["told"] = sorted(told)

broken = {}
for what, change in {
    "scale": {"weight_scale": torch.ones(4, 1)},
    "size": {"comfy_quant": torch.tensor(list(b'{"format": "int8_blockwise", "group_size": 32}'), dtype=torch.uint8)},
    "shape": {"weight": torch.zeros(128, 256, dtype=torch.int8)},
    "field": {"comfy_quant": torch.tensor(list(b'{"format": "int8_blockwise", "quarot": true}'), dtype=torch.uint8)},
}.items():
    path = os.path.join(output, f"{what}.safetensors")
    tensors, metadata = comfy.utils.load_torch_file(made, return_metadata=True)
    metadata = {key: text for key, text in metadata.items() if key != "_quantization_metadata"}
    comfy.utils.save_torch_file(tensors | {f"blocks.1.ffn.0.{key}": t for key, t in change.items()}, path, metadata)
    broken[what] = failure(lambda: inside.load_unet(path))
outputs["broken"] = broken

registration.unregister()
outputs["undone"] = before == (comfy.ops._load_quantized_module, comfy.ops._quantized_weight_state_dict)
outputs["undone too"] = failure(lambda: inside.load_unet(made))
registration.register()
outputs["again equal"] = torch.equal(sample(inside.load_unet(made)[0]), latents)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """made: by the engine. peer: the same codes as the field's converter writes them. whole: in an all-in-one file."""
    folder, source = tmp_path_factory.mktemp("blockwise"), example_model("digits_wan.safetensors")
    paths = {name: folder / f"{name}.safetensors" for name in ("made", "peer", "whole")}
    report = quantize_file(source, paths["made"], Recipe(format="int8_blockwise"))
    tensors = load_file(paths["made"])
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    marker = {"format": "int8_blockwise", "orig_dtype": "torch.bfloat16", "group_size": 128}
    theirs = dict(tensors)
    for layer in report.layers:
        theirs[f"{layer.name}.comfy_quant"] = torch.tensor(list(json.dumps(marker).encode()), dtype=torch.uint8)
        theirs[f"{layer.name}.input_scale"] = torch.tensor(1.0)
    save_file(theirs, paths["peer"], metadata)
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in tensors.items()}
    vae = load_file(example_model("digits_vae.safetensors"))
    save_file(prefixed | {f"vae.{key}": tensor for key, tensor in vae.items()}, paths["whole"], metadata)
    return {name: str(path) for name, path in {**paths, "source": source}.items()}


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return load_file(example_model("digits_conditioning.safetensors"))["conditioning"]


@pytest.fixture(scope="module")
def ran(host: Host, files: dict[str, str], table: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("output")
    return host.run(CODE, root=str(PACK), table=table, output=str(output), **files)


def test_without_the_pack_the_file_is_refused_not_misread(ran: dict[str, Any]) -> None:
    assert ran["without"] == "KeyError: 'int8_blockwise'"


def test_every_layer_runs_the_packs_kernel_and_nothing_falls_back(ran: dict[str, Any]) -> None:
    assert ran["warnings"] == []
    assert ran["calls"] == 4 * ran["layers"] > 0
    assert ran["told"] == []
    assert 0 < ran["error"] < 0.03


def test_files_of_the_fields_converter_load_and_their_input_scale_means_nothing(ran: dict[str, Any]) -> None:
    assert ran["peer warnings"] == []
    assert ran["peer equal"]


def test_an_all_in_one_checkpoint_loads(ran: dict[str, Any]) -> None:
    assert ran["checkpoint equal"]


def test_a_lora_goes_on_and_comes_off(ran: dict[str, Any]) -> None:
    assert ran["lora"] < ran["lora effect"] / 4
    assert ran["lora described"], "requantized weights have the shapes and dtypes of the loaded ones"
    assert ran["lora again"]
    assert ran["lora off"]


def test_the_hosts_save_merges_a_lora(ran: dict[str, Any]) -> None:
    assert ran["lora saved"]


def test_weights_can_be_copied_and_gathered_as_dynamic_vram_does(ran: dict[str, Any]) -> None:
    assert ran["copied"]
    assert ran["gathered"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("scale", "scale of shape [4, 1]; its blocks of 128 need [4, 2]"),
        ("size", "blocks of 32"),
        ("shape", "[128, 256]"),
        ("field", "'quarot'"),
    ],
)
def test_a_layer_that_does_not_fit_is_named(ran: dict[str, Any], what: str, words: str) -> None:
    assert ran["broken"][what].startswith("ValueError: Layer ")
    assert "blocks.1.ffn.0'" in ran["broken"][what]
    assert words in ran["broken"][what]


def test_registration_is_undone_without_a_trace_and_can_be_repeated(ran: dict[str, Any]) -> None:
    assert ran["undone"]
    assert ran["undone too"] == ran["without"]
    assert ran["again equal"]


OTHERS_CODE = """
import asyncio, functools, importlib, sys
import comfy.ops, folder_paths, pack_nodes
from comfy.quant_ops import QUANT_ALGOS
from comfy_kitchen.tensor import base
folder_paths.set_output_directory(output)

def sample(patcher):
    return pack_nodes.sample(patcher, table)

def again():
    '''The pack once more, under another name, as another import of the same folder.'''
    mine = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "calibrated_rounding"}
    with inside.warnings_logged() as warnings:
        extension = pack_nodes.load(root)
    return mine, extension, warnings

extension = pack_nodes.load(root)
from calibrated_rounding.nodes.host import registration
latents = sample(inside.load_unet(made)[0])
state = (comfy.ops._load_quantized_module, QUANT_ALGOS["int8_blockwise"], base.LAYOUTS["BlockWiseINT8Layout"])
mine, other, warnings = again()
now = (comfy.ops._load_quantized_module, QUANT_ALGOS["int8_blockwise"], base.LAYOUTS["BlockWiseINT8Layout"])
outputs["twice"] = {
    "distinct": other is not extension,
    "unchanged": all(a is b for a, b in zip(state, now)),
    "warnings": warnings,
    "equal": torch.equal(sample(inside.load_unet(made)[0]), latents),
    "quantized": pack_nodes.call(
        other.QuantizeModel, model=inside.load_unet(source)[0], format="int8_blockwise", profile="auto",
        rounding=pack_nodes.NEAREST).ui["calibrated_rounding"][0]["totals"]["layers"],
}
sys.modules.update(mine)

def wrapper(function):
    @functools.wraps(function)
    def passing(*args, **kwargs):
        seen.append(1)
        return function(*args, **kwargs)
    return passing

seen = []
comfy.ops._load_quantized_module = outer = wrapper(comfy.ops._load_quantized_module)
outputs["wrapped by another"] = torch.equal(sample(inside.load_unet(made)[0]), latents) and bool(seen)
registration.unregister()
outputs["stays in the chain"] = comfy.ops._load_quantized_module is outer
stock, _ = inside.load_unet(int8)
outputs["passes on"] = len(inside.quantized_layers(stock.model.diffusion_model)) > 0
seen.clear()
registration.register()
outputs["wraps another"] = torch.equal(sample(inside.load_unet(made)[0]), latents)
inside.load_unet(int8)
outputs["calls another"] = len(seen) > 0
registration.unregister()

theirs = {"storage_t": torch.int8, "parameters": {"weight_scale"}, "comfy_tensor_layout": "TensorWiseINT8Layout"}
QUANT_ALGOS["int8_blockwise"] = theirs
function = comfy.ops._load_quantized_module
with inside.warnings_logged() as warnings:
    registration.register()
outputs["left to another"] = {
    "untouched": QUANT_ALGOS["int8_blockwise"] is theirs and comfy.ops._load_quantized_module is function,
    "warnings": warnings,
    "loader": [node.__name__ for node in asyncio.run(extension.CalibratedRounding().get_node_list())],
}
del QUANT_ALGOS["int8_blockwise"]
registration.register()
base.LAYOUTS["BlockWiseINT8Layout"], own = object(), base.LAYOUTS["BlockWiseINT8Layout"]
outputs["layout replaced"] = registration._active()
base.LAYOUTS["BlockWiseINT8Layout"] = own
"""


@pytest.fixture(scope="module")
def others(
    host: Host, files: dict[str, str], table: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("output")
    quantize_file(files["source"], output / "int8.safetensors", Recipe(format="int8_row"))
    more = {"int8": str(output / "int8.safetensors"), "root": str(PACK), "output": str(output)}
    return host.run(OTHERS_CODE, **files, **more, table=table)


def test_a_second_import_of_the_pack_changes_nothing(others: dict[str, Any]) -> None:
    twice = others["twice"]
    assert twice["distinct"] and twice["unchanged"] and twice["equal"]
    assert twice["warnings"] == []
    assert twice["quantized"] == 19


def test_another_pack_may_wrap_the_same_function_before_or_after(others: dict[str, Any]) -> None:
    assert others["wrapped by another"]
    assert others["stays in the chain"] and others["passes on"]
    assert others["wraps another"] and others["calls another"]


def test_a_format_that_another_pack_has_is_left_to_it_with_one_line(others: dict[str, Any]) -> None:
    left = others["left to another"]
    assert left["untouched"]
    assert len(left["warnings"]) == 1
    assert "another pack has registered int8_blockwise" in left["warnings"][0]
    assert "LoadBlockwiseModel" not in left["loader"]


def test_a_layout_that_another_pack_has_put_in_place_is_not_used(others: dict[str, Any]) -> None:
    assert not others["layout replaced"]


UNTAUGHT_CODE = """
import asyncio, os, folder_paths, pack_nodes
import comfy.ops, comfy.quant_ops
from pack_nodes import call
from comfy_extras.nodes_model_merging import ModelSave
folder_paths.set_output_directory(output)
folder_paths.add_model_folder_path("diffusion_models", os.path.dirname(made))

stock = comfy.ops._load_quantized_module
comfy.ops._load_quantized_module = lambda layer, *, how=None, **more: None
with inside.warnings_logged() as warnings:
    extension = pack_nodes.load(root)
outputs["warnings"] = warnings
outputs["nodes"] = [node.__name__ for node in asyncio.run(extension.CalibratedRounding().get_node_list())]
comfy.ops._load_quantized_module = stock

def failure(action):
    try:
        action()
    except Exception as error:
        return str(error)

def sample(patcher):
    return pack_nodes.sample(patcher, table)

def load(path):
    folder_paths.filename_list_cache.clear()
    return call(extension.LoadBlockwiseModel, file=os.path.basename(path)).args[0]

def quantize(patcher, **settings):
    return call(extension.QuantizeModel, model=patcher, profile="auto", rounding=pack_nodes.NEAREST, **settings)

model = load(made)
latents = sample(model)
outputs["layers"] = inside.quantized_layers(model.model.diffusion_model)
outputs["mixed layers"] = inside.quantized_layers(load(mixed).model.diffusion_model)
deep = model.clone(force_deepcopy=True)
outputs["deep copy"] = deep.model is not model.model and torch.equal(sample(deep), latents)
ModelSave().save(model, "diffusion_models/again")
folder_paths.add_model_folder_path("diffusion_models", f"{output}/diffusion_models")
outputs["saved equal"] = torch.equal(sample(load("again_00001_.safetensors")), latents)
float_model, _ = inside.load_unet(source)
outputs["refusal"] = failure(lambda: quantize(float_model, format="int8_blockwise"))
outputs["fallback refusal"] = failure(lambda: quantize(float_model, format="int8_row", fallback="int8_blockwise_64"))
outputs["stock formats"] = quantize(float_model, format="int8_row").ui["calibrated_rounding"][0]["totals"]["layers"]
made_here = quantize(float_model, format="int8_row").args[0]
mxfp8 = comfy.quant_ops.QUANT_ALGOS.pop("mxfp8")
outputs["unknown refusal"] = failure(lambda: quantize(float_model, format="mxfp8"))
comfy.quant_ops.QUANT_ALGOS["mxfp8"] = mxfp8
comfy.ops._load_quantized_module = stock
from calibrated_rounding.nodes.host import registration
outputs["taught later"] = registration.register()
outputs["equal to taught"] = torch.equal(sample(inside.load_unet(made)[0]), latents)
outputs["saved"] = f"{output}/diffusion_models/again_00001_.safetensors"
"""


@pytest.fixture(scope="module")
def untaught(
    host: Host, files: dict[str, str], table: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A host whose function for loading layers is not the one that the pack knows."""
    mixed = Path(files["made"]).with_name("mixed.safetensors")
    quantize_file(files["source"], mixed, Recipe(format="int8_blockwise", overrides=(("ffn", "int8_row"),)))
    more = {"mixed": str(mixed), "output": str(tmp_path_factory.mktemp("output")), "root": str(PACK)}
    return host.run(UNTAUGHT_CODE, **files, **more, table=table)


def test_where_the_host_cannot_be_taught_the_log_says_so_once_and_there_is_a_loader(untaught: dict[str, Any]) -> None:
    assert len(untaught["warnings"]) == 1
    assert "cannot be taught int8_blockwise; Load Block-wise Model" in untaught["warnings"][0]
    assert "LoadBlockwiseModel" in untaught["nodes"]


def test_the_packs_loader_loads_what_the_hosts_would(untaught: dict[str, Any]) -> None:
    assert {layer["layout"] for layer in untaught["layers"].values()} == {"BlockWiseINT8Layout"}
    layouts = {layer["layout"] for layer in untaught["mixed layers"].values()}
    assert layouts == {"BlockWiseINT8Layout", "TensorWiseINT8Layout"}
    assert untaught["deep copy"]
    assert untaught["taught later"] == ""
    assert untaught["equal to taught"]


def test_a_format_that_comfyui_does_not_list_is_refused(untaught: dict[str, Any]) -> None:
    assert untaught["unknown refusal"].startswith("This ComfyUI does not know mxfp8")


def test_what_the_packs_loader_has_loaded_can_be_saved(untaught: dict[str, Any], files: dict[str, str]) -> None:
    assert untaught["saved equal"]
    saved, made = load_file(untaught["saved"]), load_file(files["made"])
    for key, tensor in made.items():
        if key.endswith((".weight", ".weight_scale", ".comfy_quant")) and tensor.dtype != torch.bfloat16:
            assert torch.equal(saved[f"model.diffusion_model.{key}"], tensor), key


def test_no_model_is_quantized_that_the_host_could_not_run(untaught: dict[str, Any]) -> None:
    for refusal, name in (("refusal", "int8_blockwise"), ("fallback refusal", "int8_blockwise_64")):
        assert f"cannot be taught {name}" in untaught[refusal]
        assert "Quantize File" in untaught[refusal] and "\n" not in untaught[refusal]
    assert untaught["stock formats"] == 19


HOST_TESTS_CODE = """
import importlib.util, unittest, pack_nodes
pack_nodes.load(root)
spec = importlib.util.spec_from_file_location("host_tests", path)
module = importlib.util.module_from_spec(spec)
with torch.inference_mode(False):
    spec.loader.exec_module(module)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
outputs["ran"] = result.testsRun
outputs["failed"] = [f"{test}: {trace}" for test, trace in [*result.failures, *result.errors]]
"""


def test_comfyuis_own_tests_of_quantized_layers_pass_with_the_pack(host: Host) -> None:
    path = host.path / "tests-unit" / "comfy_quant" / "test_mixed_precision.py"
    if not path.is_file():
        pytest.skip(f"this ComfyUI has no {path.name}")
    ran = host.run(HOST_TESTS_CODE, root=str(PACK), path=str(path))
    assert ran["failed"] == []
    assert ran["ran"] > 5


COMPILE_CODE = """
import pack_nodes, comfy.ops
pack_nodes.load(root)
from calibrated_rounding.quant import Recipe, quantize_tensor

def layer(fmt):
    linear = comfy.ops.mixed_precision_ops({}, torch.bfloat16).Linear(256, 512, dtype=torch.bfloat16)
    tensors, _ = quantize_tensor(weight, Recipe(format=fmt, profile="generic"))
    linear.load_state_dict(tensors | {"bias": torch.ones(512)})
    return linear

def compiled(fmt):
    linear = layer(fmt)
    expected = linear(x)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    result = torch.compile(linear, backend="eager")(x)
    return {"equal": torch.equal(result, expected), "breaks": sum(counters["graph_break"].values())}

x = torch.randn(2, 5, 256).bfloat16()
with torch.inference_mode(False), torch.no_grad():
    outputs.update({fmt: compiled(fmt) for fmt in ("int8_row", "int8_blockwise", "int8_blockwise_64")})
"""


def test_a_compiled_layer_has_as_few_graph_breaks_as_the_stock_format(host: Host) -> None:
    weight = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    ran = host.run(COMPILE_CODE, root=str(PACK), weight=weight)
    assert all(layer["equal"] for layer in ran.values()), ran
    assert ran["int8_blockwise"]["breaks"] == ran["int8_blockwise_64"]["breaks"] <= ran["int8_row"]["breaks"]


STOCK_CODE = """
import pack_nodes
extension = pack_nodes.load(root)
from calibrated_rounding.kernels.layouts import stock

row_linear, calls = stock.ops.row_linear, []
def counted(*args):
    calls.append(1)
    return row_linear(*args)
stock.ops.row_linear = counted

model, _ = inside.load_unet(int8)
latents = pack_nodes.sample(model, table)
outputs["off"] = len(calls)
stock.enable()
on = pack_nodes.sample(model, table)
outputs["on"], outputs["error"] = len(calls), float((on - latents).norm() / latents.norm())
stock.disable()
outputs["equal"] = torch.equal(pack_nodes.sample(model, table), latents)
outputs["layers"] = len(inside.quantized_layers(model.model.diffusion_model))
"""


def test_stock_layers_run_on_the_packs_kernels_when_asked(
    host: Host, files: dict[str, str], table: torch.Tensor, tmp_path: Path
) -> None:
    quantize_file(files["source"], tmp_path / "int8.safetensors", Recipe(format="int8_convrot"))
    ran = host.run(STOCK_CODE, root=str(PACK), int8=str(tmp_path / "int8.safetensors"), table=table)
    assert ran["off"] == 0
    # Newer hosts fold an activation into some products, which the pack leaves to the others.
    assert 4 * ran["layers"] * 0.8 < ran["on"] <= 4 * ran["layers"]
    assert ran["error"] < 0.02
    assert ran["equal"]
