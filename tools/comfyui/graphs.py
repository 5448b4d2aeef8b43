"""Parts of workflows in the API format: nodes that load, quantize, sample and save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

DIRECTIONS = {"metric": "weight", "top_p": 0.2, "min_k": 64, "max_k": 256, "exact_svd": False, "random_seed": 0}


def stock_node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    """A node of any type."""
    return {"class_type": kind, "inputs": inputs}


def pack_node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    """A node of this pack; its type is named without the pack."""
    return stock_node(f"CalibratedRounding{kind}", **inputs)


def model_loader(name: str) -> dict[str, Any]:
    """A UNETLoader of a file."""
    return stock_node("UNETLoader", unet_name=name, weight_dtype="default")


def quantize_inputs(**settings: Any) -> dict[str, Any]:
    """Inputs of a quantize node; what is not named takes the node's default."""
    return {"format": "int8_row", "profile": "auto", "rounding": "nearest", **settings}


def svd_inputs(optimizer: str, **steps: Any) -> dict[str, Any]:
    """The part of `quantize_inputs` that asks for learned rounding; ``steps`` are the optimizer's settings."""
    nested = {f"rounding.optimizer.{key}": value for key, value in steps.items()}
    flat = {f"rounding.{key}": value for key, value in DIRECTIONS.items()}
    return {"rounding": "svd", "rounding.optimizer": optimizer, **nested, **flat}


def sampling_nodes(seed: int = 0, **models: str) -> dict[str, Any]:
    """Nodes that sample two digits in four steps with each model, enough to tell models apart bit by bit.

    Args:
        seed: Of the noise.
        **models: Name of the latents -> key of the model's node. `read_latents` reads them by that name.
    """
    table = "digits_conditioning.safetensors"
    graph = {
        "digit": pack_node("LoadClassConditioning", table=table, class_index=7),
        "nothing": pack_node("LoadClassConditioning", table=table, class_index=10),
        "empty": stock_node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=2),
    }
    conditions = {"positive": ["digit", 0], "negative": ["nothing", 0], "latent_image": ["empty", 0]}
    settings = {"seed": seed, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    for name, model in models.items():
        graph[f"sample {name}"] = stock_node("KSampler", model=[model, 0], **conditions, **settings)
        graph[name] = stock_node("SaveLatent", samples=[f"sample {name}", 0], filename_prefix=f"latents/{name}")
    return graph


def read_latents(output: Path, outputs: Mapping[str, Any], name: str) -> Tensor:
    """Read the latents that ``sampling_nodes(name=...)`` saved below the folder ``output``."""
    (shown,) = outputs[name]["latents"]
    return load_file(output / shown["subfolder"] / shown["filename"])["latent_tensor"]
