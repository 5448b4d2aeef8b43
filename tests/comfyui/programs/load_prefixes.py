"""Programs of test_loading.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import nodes
from calibrated_rounding.tools.comfyui.inside.models import capture_warnings, describe_quantized_layers
from calibrated_rounding.tools.comfyui.inside.sampling import sample
from comfy.model_detection import convert_diffusers_mmdit, unet_prefix_from_state_dict
from safetensors.torch import load_file
from torch import Tensor


def load_files(paths: dict[str, str], table: Tensor) -> dict[str, Any]:
    """Load each file with both loaders of diffusion models; sample what holds quantized layers."""
    for path in paths.values():
        for kind in ("diffusion_models", "checkpoints"):
            folder_paths.add_model_folder_path(kind, str(Path(path).parent))
    folder_paths.filename_list_cache.clear()
    unet, checkpoint = nodes.UNETLoader(), nodes.CheckpointLoaderSimple()
    loaders = {"unet": lambda name: unet.load_unet(name, "default"), "checkpoint": checkpoint.load_checkpoint}
    return {
        name: {loader: _load(load, path, table) for loader, load in loaders.items()} for name, path in paths.items()
    }


def _load(load: Callable[[str], Any], path: str, table: Tensor) -> dict[str, Any]:
    with capture_warnings() as warnings:
        try:
            model = load(Path(path).name)[0]
        except Exception as error:  # whatever ComfyUI raises for a file that it cannot load
            return {"error": f"{type(error).__name__}: {error}", "warnings": warnings, "layers": []}
    layers = list(describe_quantized_layers(model.model.diffusion_model))
    latents = {"latents": sample(model, table, seed=0)} if layers else {}
    return {"warnings": warnings, "layers": layers} | latents


def find_prefixes(lists: list[list[str]]) -> dict[str, Any]:
    """Ask ComfyUI for the prefix of each list of names."""
    return {"prefixes": [unet_prefix_from_state_dict(dict.fromkeys(names)) for names in lists]}


def rename(path: str) -> dict[str, Any]:
    """Rename the tensors of a file in diffusers' names as ComfyUI's loaders do."""
    tensors = convert_diffusers_mmdit(load_file(path))
    return {
        "tensors": tensors,
        "markers": [name for name in tensors if name.endswith(".comfy_quant")],
        "scales": [name for name in tensors if name.endswith("_scale")],
    }
