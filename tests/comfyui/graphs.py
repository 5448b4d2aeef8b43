"""Parts of workflows in the API format: nodes that load, quantize, sample and save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

DIRECTIONS = {"metric": "weight", "top_p": 0.2, "min_k": 64, "max_k": 256, "exact_svd": False, "random_seed": 0}


def stock(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    """A node of this pack."""
    return stock(f"CalibratedRounding{kind}", **inputs)


def quantizing(**settings: Any) -> dict[str, Any]:
    """A quantize node's inputs as the API format has them; what is not named takes the node's default."""
    return {"format": "int8_row", "profile": "auto", "rounding": "nearest", **settings}


def svd(optimizer: str, **steps: Any) -> dict[str, Any]:
    """Learned rounding, as part of `quantizing`; ``steps`` are the optimizer's settings."""
    nested = {f"rounding.optimizer.{key}": value for key, value in steps.items()}
    flat = {f"rounding.{key}": value for key, value in DIRECTIONS.items()}
    return {"rounding": "svd", "rounding.optimizer": optimizer, **nested, **flat}


def loader(name: str) -> dict[str, Any]:
    return stock("UNETLoader", unet_name=name, weight_dtype="default")


def sampling(seed: int = 0, **models: str) -> dict[str, Any]:
    """Nodes that sample two digits in four steps with each model: name of the latents -> name of the model's node.

    That is enough to tell models apart bit by bit, and quick. `latents` reads what was saved.
    """
    table = "digits_conditioning.safetensors"
    graph = {
        "digit": node("LoadClassConditioning", table=table, class_index=7),
        "nothing": node("LoadClassConditioning", table=table, class_index=10),
        "empty": stock("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=2),
    }
    conditions = {"positive": ["digit", 0], "negative": ["nothing", 0], "latent_image": ["empty", 0]}
    settings = {"seed": seed, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    for name, model in models.items():
        graph[f"sample {name}"] = stock("KSampler", model=[model, 0], **conditions, **settings)
        graph[name] = stock("SaveLatent", samples=[f"sample {name}", 0], filename_prefix=f"latents/{name}")
    return graph


def latents(output: Path, outputs: Mapping[str, Any], name: str) -> Tensor:
    """What ``sampling(name=...)`` has saved below the output folder."""
    (shown,) = outputs[name]["latents"]
    return load_file(output / shown["subfolder"] / shown["filename"])["latent_tensor"]
