"""Files that the engine writes, in ComfyUI's own loaders: what they become there, and how close their samples are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, Report, SvdSettings, quantize_file, quantize_tensor
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tests.comfyui.harness import PACK, Host, example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LAYOUTS = {
    "float8_e4m3fn": "TensorCoreFP8E4M3Layout",
    "float8_e5m2": "TensorCoreFP8E5M2Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "int8_blockwise": "BlockWiseINT8Layout",
}


@dataclass(frozen=True)
class Case:
    """A recipe, and the least mean PSNR in dB of its latents against the float model's."""

    recipe: Recipe
    psnr: float


STOCK_CASES = {
    "float8_e4m3fn": Case(Recipe(format="float8_e4m3fn"), 44),
    "float8_e5m2": Case(Recipe(format="float8_e5m2"), 36),
    "int8_tensor": Case(Recipe(format="int8_tensor"), 45),
    "int8_row": Case(Recipe(format="int8_row"), 46),
    "int8_convrot_16": Case(Recipe(format="int8_convrot", rotation_group=16), 50),
    "int8_convrot_64": Case(Recipe(format="int8_convrot", rotation_group=64), 51),
    "int8_convrot_256": Case(Recipe(format="int8_convrot", rotation_group=256), 51),
    "mxfp8": Case(Recipe(format="mxfp8"), 43),
    "int8_row_svd": Case(Recipe(format="int8_row", rounding="svd", svd=SvdSettings(optimizer="feedback")), 46),
    "mixed": Case(Recipe(format="int8_convrot", overrides=((r"ffn\.0", "float8_e4m3fn"), (r"ffn\.2", "mxfp8"))), 46),
}
PACK_CASES = {
    "int8_blockwise": Case(Recipe(format="int8_blockwise"), 46),
    "int8_blockwise_64": Case(Recipe(format="int8_blockwise_64"), 46),
    "mixed_blockwise": Case(Recipe(format="int8_blockwise", overrides=((r"ffn", "int8_row"),)), 46),
}
"""Files that load while the pack is installed."""

CASES = STOCK_CASES | PACK_CASES

WITH_PACK = """
import pack_nodes
pack_nodes.load(root)
"""

SAMPLE = """
from comfy_extras.nodes_model_merging import ModelSave
import folder_paths
folder_paths.set_output_directory(saved)
for name, path in paths.items():
    model, warnings = inside.load_unet(path)
    outputs[f"{name} warnings"] = warnings
    outputs[f"{name} layers"] = inside.quantized_layers(model.model.diffusion_model)
    outputs[f"{name} latents"] = inside.sample(model, table, 0)
    ModelSave().save(model, name)
"""


@dataclass(frozen=True)
class Sampled:
    """What the host made of the files: ``outputs`` of `SAMPLE`, and the folder that ModelSave wrote to."""

    paths: dict[str, Path]
    reports: dict[str, Report]
    outputs: dict[str, Any]
    saved: Path


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return load_file(example_model("digits_conditioning.safetensors"))["conditioning"]


@pytest.fixture(scope="module")
def sampled(host: Host, table: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    """Every case and the float model, loaded, sampled and saved: in one run without the pack, and one with it."""
    folder = tmp_path_factory.mktemp("files")
    source = example_model("digits_wan.safetensors")
    paths = {name: folder / f"{name}.safetensors" for name in CASES}
    reports = {name: quantize_file(source, paths[name], case.recipe) for name, case in CASES.items()}
    stock = {name: str(paths[name]) for name in STOCK_CASES} | {"float": str(source)}
    outputs = host.run(SAMPLE, paths=stock, table=table, saved=str(folder / "saved"))
    own = {name: str(paths[name]) for name in PACK_CASES}
    outputs |= host.run(WITH_PACK + SAMPLE, paths=own, table=table, saved=str(folder / "saved"), root=str(PACK))
    return Sampled(paths, reports, outputs, folder / "saved")


@pytest.mark.parametrize("name", CASES)
def test_loads_without_a_warning(sampled: Sampled, name: str) -> None:
    assert sampled.outputs[f"{name} warnings"] == []


@pytest.mark.parametrize("name", CASES)
def test_every_layer_is_quantized_in_the_host_as_reported(sampled: Sampled, name: str) -> None:
    reported = {
        layer.name: {
            "layout": LAYOUTS[FORMATS[layer.format].comfyui_name],
            "dtype": str(FORMATS[layer.format].grid.dtype),
            "group": layer.group,
        }
        for layer in sampled.reports[name].layers
    }
    assert sampled.outputs[f"{name} layers"] == reported
    assert reported


@pytest.mark.parametrize("name", CASES)
def test_samples_stay_close_to_the_float_model(sampled: Sampled, name: str) -> None:
    assert psnr(sampled.outputs[f"{name} latents"], sampled.outputs["float latents"]) >= CASES[name].psnr


@pytest.mark.parametrize("name", CASES)
def test_the_hosts_own_save_keeps_codes_scales_and_markers(sampled: Sampled, name: str) -> None:
    ours = load_file(sampled.paths[name])
    prefix = "model.diffusion_model."
    saved = load_file(next(sampled.saved.glob(f"{name}_0*.safetensors")))
    theirs = {key.removeprefix(prefix): tensor for key, tensor in saved.items()}
    assert theirs.keys() == ours.keys()
    for layer in sampled.reports[name].layers:
        for suffix in ("weight", "weight_scale"):
            assert same_bytes(theirs.pop(f"{layer.name}.{suffix}"), ours[f"{layer.name}.{suffix}"]), layer.name
        key = f"{layer.name}.comfy_quant"
        assert json.loads(bytes(theirs.pop(key))) == json.loads(bytes(ours[key]))
    # What stayed in floating point is widened to float32, the dtype that the host computes in on a CPU.
    assert all(torch.equal(tensor.to(ours[key].dtype), ours[key]) for key, tensor in theirs.items())


def psnr(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean over latents of the peak signal-to-noise ratio in dB; the peak is the range of the whole reference."""
    peak = reference.max() - reference.min()
    return float(20 * torch.log10(peak / (latents - reference).square().flatten(1).mean(1).sqrt()).mean())


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shapes and bytes; the dtypes may be two names of one (uint8, float8_e8m0fnu)."""
    return a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


QUANTIZE = """
from comfy.quant_ops import QuantizedTensor
for name, (layout, options) in formats.items():
    q = QuantizedTensor.from_float(weight.clone(), layout, **options)
    parts = q.state_dict("weight")
    for key, tensor in parts.items():
        outputs[f"{name} {key}"] = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
"""

HOST_QUANTIZES = {
    "int8_tensor": ("TensorWiseINT8Layout", {}),
    "int8_row": ("TensorWiseINT8Layout", {"per_channel": True}),
    "int8_convrot_16": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True, "convrot_groupsize": 16}),
    "int8_convrot_64": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True, "convrot_groupsize": 64}),
    "int8_convrot_256": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True, "convrot_groupsize": 256}),
    "float8_e4m3fn": ("TensorCoreFP8E4M3Layout", {"scale": "recalculate"}),
    "float8_e5m2": ("TensorCoreFP8E5M2Layout", {"scale": "recalculate"}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}),
}

RECIPROCAL = ("float8_e4m3fn", "float8_e5m2")
"""The host multiplies by the scale's reciprocal where the engine divides: a few codes on a tie fall the other way."""


@pytest.fixture(scope="module")
def heavy_tailed() -> torch.Tensor:
    """A weight ``[96, 512]`` whose rows differ in size by 100 and that has outliers."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 512, generator=generator) * torch.logspace(-3, -1, 96)[:, None]
    weight[::7, ::31] *= 20
    return weight


@pytest.fixture(scope="module")
def host_codes(host: Host, heavy_tailed: torch.Tensor) -> dict[str, torch.Tensor]:
    return host.run(QUANTIZE, weight=heavy_tailed, formats=HOST_QUANTIZES)


@pytest.mark.parametrize("name", HOST_QUANTIZES)
def test_nearest_codes_and_scales_are_the_hosts_own(
    host_codes: dict[str, torch.Tensor], heavy_tailed: torch.Tensor, name: str
) -> None:
    fmt = name if name in FORMATS else "int8_convrot"
    group = 256 if name in FORMATS else int(name.rsplit("_", 1)[1])
    ours, _ = quantize_tensor(heavy_tailed, Recipe(format=fmt, profile="generic", rotation_group=group))
    assert same_bytes(ours["weight_scale"], host_codes[f"{name} weight_scale"])
    codes, theirs = ours["weight"].view(torch.uint8), host_codes[f"{name} weight"]
    differ = codes != theirs
    if name in RECIPROCAL:
        assert (codes.int() - theirs.int()).abs().max() <= 1  # neighbours of one sign differ by one in their bits
        assert differ.float().mean() < 1e-3
    else:
        assert not differ.any()


AIO = """
import folder_paths, nodes
folder_paths.add_model_folder_path("checkpoints", folder)
model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(name)
outputs["layers"] = inside.quantized_layers(model.model.diffusion_model)
outputs["latents"] = inside.sample(model, table, 0)
"""


def test_an_all_in_one_checkpoint_keeps_its_autoencoder(
    host: Host, sampled: Sampled, table: torch.Tensor, tmp_path: Path
) -> None:
    model, vae = example_model("digits_wan.safetensors"), load_file(example_model("digits_vae.safetensors"))
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in load_file(model).items()}
    tensors |= {f"vae.{key}": tensor for key, tensor in vae.items()}
    with safe_open(model, "pt") as file:
        save_file(tensors, tmp_path / "whole.safetensors", file.metadata())
    report = quantize_file(tmp_path / "whole.safetensors", tmp_path / "int8.safetensors", Recipe(format="int8_row"))
    made = host.run(AIO, folder=str(tmp_path), name="int8.safetensors", table=table)
    assert {f"model.diffusion_model.{name}" for name in made["layers"]} == {layer.name for layer in report.layers}
    assert psnr(made["latents"], sampled.outputs["float latents"]) >= CASES["int8_row"].psnr
    written = load_file(tmp_path / "int8.safetensors")
    assert all(torch.equal(written[f"vae.{key}"], tensor) for key, tensor in vae.items())
