"""Files that the engine writes, in ComfyUI's own loaders: their layers there, and how close their latents are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, Report, SvdSettings, quantize_file, quantize_tensor
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tests.comfyui.fp8 import OPTIONS, both_ways
from calibrated_rounding.tools.comfyui import Host, HostError, example_model
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
    """A recipe, and how close its latents must be to the float model's."""

    recipe: Recipe
    psnr: float
    """Least mean PSNR in dB."""
    fp8_psnr: float = 0
    """The same with FP8 compute (fp8.py), for recipes with FP8 layers."""


MIXED = ((r"ffn\.0", "float8_e4m3fn"), (r"ffn\.2", "mxfp8"))
STOCK_CASES = {
    "float8_e4m3fn": Case(Recipe(format="float8_e4m3fn"), 44, fp8_psnr=43),
    "float8_e5m2": Case(Recipe(format="float8_e5m2"), 36, fp8_psnr=36),
    "int8_tensor": Case(Recipe(format="int8_tensor"), 45),
    "int8_row": Case(Recipe(format="int8_row"), 46),
    "int8_convrot_16": Case(Recipe(format="int8_convrot", rotation_group=16), 50),
    "int8_convrot_64": Case(Recipe(format="int8_convrot", rotation_group=64), 51),
    "int8_convrot_256": Case(Recipe(format="int8_convrot", rotation_group=256), 51),
    "mxfp8": Case(Recipe(format="mxfp8"), 43),
    "int8_row_svd": Case(Recipe(format="int8_row", rounding="svd", svd=SvdSettings(optimizer="feedback")), 46),
    "mixed": Case(Recipe(format="int8_convrot", overrides=MIXED), 46, fp8_psnr=46),
}
PACK_CASES = {
    "int8_blockwise": Case(Recipe(format="int8_blockwise"), 46),
    "int8_blockwise_64": Case(Recipe(format="int8_blockwise_64"), 46),
    "mixed_blockwise": Case(Recipe(format="int8_blockwise", overrides=((r"ffn", "int8_row"),)), 46),
}
"""Files that load while the pack is installed."""

CASES = STOCK_CASES | PACK_CASES


def has_fp8(name: str) -> bool:
    recipe = CASES[name].recipe
    return any(fmt.startswith("float8") for fmt in (recipe.format, *(fmt for _, fmt in recipe.overrides)))


RUNS = both_ways(CASES, has_fp8)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Every case as ComfyUI loaded, sampled and saved it."""

    paths: dict[str, Path]
    reports: dict[str, Report]
    results: dict[str, dict[str, Any]]
    """By way (fp8.py) and case."""
    reference: torch.Tensor
    """Latents of the float model."""
    saved: dict[str, Path]
    """By way: the folder that ModelSave wrote to."""


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return load_file(example_model("digits_conditioning.safetensors"))["conditioning"]


@pytest.fixture(scope="module")
def sampled(host: Host, table: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    """Runs without the pack, with the pack, and without it but with FP8 compute."""
    folder = tmp_path_factory.mktemp("files")
    source = example_model("digits_wan.safetensors")
    paths = {name: folder / f"{name}.safetensors" for name in CASES}
    saved = {way: folder / f"saved_{way}" for way in OPTIONS}
    reports = {name: quantize_file(source, paths[name], case.recipe) for name, case in CASES.items()}

    def sample(function: str, names: Iterable[str], way: str) -> dict[str, Any]:
        files = {name: paths[name] for name in names} | {"float": source}
        return host.call(function, paths=files, table=table, saved=saved[way], options=OPTIONS[way])

    without_pack = "tests.comfyui.programs.load_files:sample_files"
    emulated = sample(without_pack, STOCK_CASES, "emulated")
    emulated |= sample("tests.comfyui.programs.load_files:sample_files_with_pack", PACK_CASES, "emulated")
    results = {"emulated": emulated, "fp8_compute": sample(without_pack, filter(has_fp8, CASES), "fp8_compute")}
    reference = emulated["float"]["latents"]
    assert torch.equal(reference, results["fp8_compute"]["float"]["latents"])
    return Sampled(paths=paths, reports=reports, results=results, reference=reference, saved=saved)


@pytest.mark.parametrize(("name", "way"), RUNS)
def test_file_loads_without_warning(sampled: Sampled, name: str, way: str) -> None:
    assert sampled.results[way][name]["warnings"] == []


@pytest.mark.parametrize(("name", "way"), RUNS)
def test_reported_layers_are_quantized_in_comfyui(sampled: Sampled, name: str, way: str) -> None:
    reported = {
        layer.name: {
            "layout": LAYOUTS[FORMATS[layer.format].comfyui_name],
            "dtype": str(FORMATS[layer.format].grid.dtype),
            "group": layer.group,
        }
        for layer in sampled.reports[name].layers
    }
    assert sampled.results[way][name]["layers"] == reported
    assert reported


@pytest.mark.parametrize(("name", "way"), RUNS)
def test_latents_stay_close_to_float(sampled: Sampled, name: str, way: str) -> None:
    least = CASES[name].psnr if way == "emulated" else CASES[name].fp8_psnr
    assert psnr(sampled.results[way][name]["latents"], sampled.reference) >= least


@pytest.mark.parametrize(("name", "way"), RUNS)
def test_model_save_keeps_quantized_tensors(sampled: Sampled, name: str, way: str) -> None:
    ours = load_file(sampled.paths[name])
    prefix = "model.diffusion_model."
    saved = load_file(next(sampled.saved[way].glob(f"{name}_0*.safetensors")))
    theirs = {key.removeprefix(prefix): tensor for key, tensor in saved.items()}
    assert theirs.keys() == ours.keys()
    for layer in sampled.reports[name].layers:
        for suffix in ("weight", "weight_scale"):
            assert same_bytes(theirs.pop(f"{layer.name}.{suffix}"), ours[f"{layer.name}.{suffix}"]), layer.name
        key = f"{layer.name}.comfy_quant"
        assert json.loads(bytes(theirs.pop(key))) == json.loads(bytes(ours[key]))
    # Float tensors are widened to float32, the dtype that ComfyUI computes in on a CPU.
    assert all(torch.equal(tensor.to(ours[key].dtype), ours[key]) for key, tensor in theirs.items())


def psnr(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean over latents of the peak signal-to-noise ratio in dB; the peak is the range of the whole reference."""
    peak = reference.max() - reference.min()
    return float(20 * torch.log10(peak / (latents - reference).square().flatten(1).mean(1).sqrt()).mean())


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shapes and bytes; the dtypes may be two names of one type (uint8, float8_e8m0fnu)."""
    return a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


COMFYUI_LAYOUTS = {
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
"""ComfyUI multiplies by the reciprocal of the scale, the engine divides: a few ties are rounded the other way."""


@pytest.fixture(scope="module")
def heavy_tailed() -> torch.Tensor:
    """A weight ``[96, 512]`` with outliers, whose rows differ in size by a factor of 100."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 512, generator=generator) * torch.logspace(-3, -1, 96)[:, None]
    weight[::7, ::31] *= 20
    return weight


@pytest.fixture(scope="module")
def comfyui_tensors(host: Host, heavy_tailed: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    function = "tests.comfyui.programs.load_files:quantize_weight"
    return host.call(function, weight=heavy_tailed, formats=COMFYUI_LAYOUTS)


@pytest.mark.parametrize("name", COMFYUI_LAYOUTS)
def test_nearest_matches_comfyui_codes_and_scales(
    comfyui_tensors: dict[str, dict[str, torch.Tensor]], heavy_tailed: torch.Tensor, name: str
) -> None:
    fmt = name if name in FORMATS else "int8_convrot"
    group = 256 if name in FORMATS else int(name.rsplit("_", 1)[1])
    ours, _ = quantize_tensor(heavy_tailed, Recipe(format=fmt, profile="generic", rotation_group=group))
    assert same_bytes(ours["weight_scale"], comfyui_tensors[name]["weight_scale"])
    codes, theirs = ours["weight"].view(torch.uint8), comfyui_tensors[name]["weight"]
    differ = codes != theirs
    if name in RECIPROCAL:
        assert (codes.int() - theirs.int()).abs().max() <= 1  # neighbours of one sign differ by one in their bits
        assert differ.float().mean() < 1e-3
    else:
        assert not differ.any()


def test_e5m2_runs_where_cuda_refuses_its_product(host: Host, sampled: Sampled, table: torch.Tensor) -> None:
    function = "tests.comfyui.programs.load_files:sample_where_cuda_refuses"
    path = sampled.paths["float8_e5m2"]
    result = host.call(function, path=path, table=table, options=OPTIONS["fp8_compute"])
    assert torch.equal(result["latents"], sampled.results["emulated"]["float8_e5m2"]["latents"])


def test_e5m2_without_its_flag_fails_there(host: Host, sampled: Sampled, table: torch.Tensor, tmp_path: Path) -> None:
    tensors = load_file(sampled.paths["float8_e5m2"])
    unflagged = torch.tensor(list(b'{"format": "float8_e5m2"}'), dtype=torch.uint8)
    path = tmp_path / "unflagged.safetensors"
    markers = {key: unflagged.clone() for key in tensors if key.endswith(".comfy_quant")}
    with safe_open(sampled.paths["float8_e5m2"], "pt") as file:
        save_file(tensors | markers, path, {"config": file.metadata()["config"]})
    function = "tests.comfyui.programs.load_files:sample_where_cuda_refuses"
    with pytest.raises(HostError, match="two Float8_e5m2 matrices"):
        host.call(function, path=path, table=table, options=OPTIONS["fp8_compute"])


def test_all_in_one_checkpoint_keeps_vae(host: Host, sampled: Sampled, table: torch.Tensor, tmp_path: Path) -> None:
    model, vae = example_model("digits_wan.safetensors"), load_file(example_model("digits_vae.safetensors"))
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in load_file(model).items()}
    tensors |= {f"vae.{key}": tensor for key, tensor in vae.items()}
    with safe_open(model, "pt") as file:
        save_file(tensors, tmp_path / "whole.safetensors", file.metadata())
    report = quantize_file(tmp_path / "whole.safetensors", tmp_path / "int8.safetensors", Recipe(format="int8_row"))
    function = "tests.comfyui.programs.load_files:sample_checkpoint"
    result = host.call(function, folder=tmp_path, name="int8.safetensors", table=table)
    assert {f"model.diffusion_model.{name}" for name in result["layers"]} == {layer.name for layer in report.layers}
    assert psnr(result["latents"], sampled.reference) >= CASES["int8_row"].psnr
    written = load_file(tmp_path / "int8.safetensors")
    assert all(torch.equal(written[f"vae.{key}"], tensor) for key, tensor in vae.items())
