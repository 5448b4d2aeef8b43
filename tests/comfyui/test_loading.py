"""Which names ComfyUI's own loaders read quantized layers under, and that they do so without a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, UnloadableError, quantize_file
from calibrated_rounding.quant.planning.names import loader_prefix
from calibrated_rounding.quant.reports.inspection import inspect_file
from calibrated_rounding.tests.comfyui.harness import Host, example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

STRIPPED = ["", "model.diffusion_model.", "model.model.", "net.", "model."]
CHECKPOINTS = ["model.diffusion_model.", "model.model.", "net.", "model."]
"""Without a prefix ComfyUI loads no WAN as a checkpoint whose header tells its sizes, quantized or not."""
KEPT = ["diffusion_model.", "transformer.", "_orig_mod.", "module."]

LOAD = """
from pathlib import Path

import folder_paths
import nodes

def load(loader, path):
    with inside.warnings_logged() as warnings:
        try:
            model = loader(Path(path).name)[0]
        except Exception as error:
            return None, f"{type(error).__name__}: {error}"
    return model, warnings

loaders = {
    "unet": lambda name: nodes.UNETLoader().load_unet(name, "default"),
    "checkpoint": lambda name: nodes.CheckpointLoaderSimple().load_checkpoint(name),
}
for name, path in paths.items():
    folder_paths.add_model_folder_path("diffusion_models", str(Path(path).parent))
    folder_paths.add_model_folder_path("checkpoints", str(Path(path).parent))
    folder_paths.filename_list_cache.clear()
    for kind, loader in loaders.items():
        model, outputs[f"{name} {kind} warnings"] = load(loader, path)
        layers = {} if model is None else inside.quantized_layers(model.model.diffusion_model)
        outputs[f"{name} {kind} layers"] = sorted(layers)
        if layers:
            outputs[f"{name} {kind} latents"] = inside.sample(model, table, 0)
"""

DETECT = """
from comfy.model_detection import unet_prefix_from_state_dict
outputs["prefixes"] = [unet_prefix_from_state_dict(dict.fromkeys(names)) for names in lists]
"""


@pytest.fixture(scope="module")
def loaded(host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The float and the quantized example under each prefix, in both of ComfyUI's loaders."""
    folder, source = tmp_path_factory.mktemp("prefixes"), example_model("digits_wan.safetensors")
    tensors, paths = load_file(source), {}
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    for prefix in [*STRIPPED, *KEPT]:
        floats, quantized = folder / f"{prefix}float.safetensors", folder / f"{prefix}quantized.safetensors"
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, floats, metadata)
        quantize_file(floats, quantized, Recipe(format="int8_convrot"), force=prefix in KEPT)
        paths |= {f"float {prefix}": str(floats), f"quantized {prefix}": str(quantized)}
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    return host.run(LOAD, paths=paths, table=table) | {"paths": paths}


@pytest.mark.parametrize("loader", ["unet", "checkpoint"])
@pytest.mark.parametrize("prefix", STRIPPED)
def test_quantized_layers_load_without_a_warning(loaded: dict[str, Any], prefix: str, loader: str) -> None:
    if loader == "checkpoint" and prefix not in CHECKPOINTS:
        pytest.skip("no checkpoint")
    assert loaded[f"quantized {prefix} {loader} warnings"] == loaded[f"float {prefix} {loader} warnings"]
    assert not any("unexpected" in warning for warning in loaded[f"quantized {prefix} {loader} warnings"])
    assert len(loaded[f"quantized {prefix} {loader} layers"]) == 19
    assert torch.equal(loaded[f"quantized {prefix} {loader} latents"], loaded["quantized  unet latents"])


@pytest.mark.parametrize("prefix", STRIPPED)
def test_inspection_misses_nothing_under_a_prefix(loaded: dict[str, Any], prefix: str) -> None:
    found = inspect_file(loaded["paths"][f"quantized {prefix}"])
    assert (found.obstacles, found.disagreements, found.profile) == ([], [], "wan")


@pytest.mark.parametrize("loader", ["unet", "checkpoint"])
@pytest.mark.parametrize("prefix", KEPT)
def test_refused_prefixes_do_not_load(loaded: dict[str, Any], prefix: str, loader: str, tmp_path: Path) -> None:
    with pytest.raises(UnloadableError, match=prefix):
        quantize_file(loaded["paths"][f"float {prefix}"], tmp_path / "q.safetensors")
    assert loaded[f"quantized {prefix} {loader} layers"] == []
    assert inspect_file(loaded["paths"][f"quantized {prefix}"]).obstacles


def test_the_stripped_prefix_is_comfyuis(host: Host) -> None:
    lists = [[f"{prefix}{n}" for n in range(count)] for prefix in [*STRIPPED, *KEPT] for count in (1, 5, 6, 9)]
    lists += [sorted({*a, *b}) for a in lists for b in lists]
    theirs = host.run(DETECT, lists=lists)["prefixes"]
    for names, prefix in zip(lists, theirs, strict=True):
        # Where no name begins with the prefix, ComfyUI strips nothing.
        assert loader_prefix(names) == (prefix if any(name.startswith(prefix) for name in names) else "")
