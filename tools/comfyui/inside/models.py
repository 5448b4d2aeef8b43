"""Models in ComfyUI's interpreter: loaded by the stock nodes, patched and examined."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import nodes
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor


def load_unet(path: str) -> tuple[Any, list[str]]:
    """Load a MODEL with the stock UNETLoader; returns it and the warnings that were logged."""
    _list_folder("diffusion_models", path)
    with capture_warnings() as warnings:
        (model,) = nodes.UNETLoader().load_unet(Path(path).name, "default")
    return model, warnings


def load_clip(path: str, kind: str) -> tuple[Any, list[str]]:
    """Load a CLIP with the stock CLIPLoader; returns it and the warnings that were logged."""
    _list_folder("text_encoders", path)
    with capture_warnings() as warnings:
        (clip,) = nodes.CLIPLoader().load_clip(Path(path).name, kind)
    return clip, warnings


@contextmanager
def capture_warnings() -> Iterator[list[str]]:
    """Collect what is logged as a warning or worse inside the block."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)


def describe_quantized_layers(module: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Name -> layout, storage dtype and rotation group of every layer whose weight is a QuantizedTensor."""
    layers = {}
    for name, layer in module.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, QuantizedTensor):
            rotated = getattr(weight._params, "convrot", False)
            layers[name] = {
                "layout": weight._layout_cls,
                "dtype": str(weight._qdata.dtype),
                "group": weight._params.convrot_groupsize if rotated else None,
            }
    return layers


def random_lora(model: Any, pattern: str) -> dict[str, Tensor]:
    """Make a LoRA of rank 4, strong enough to change latents, for the weight matrices of a float MODEL.

    Args:
        model: A ModelPatcher.
        pattern: Regular expression for the weights' names.
    """
    generator, tensors = torch.Generator().manual_seed(1), dict[str, Tensor]()
    for key, weight in model.model.state_dict().items():
        if re.search(pattern, key) and weight.ndim == 2:
            name = key.removesuffix(".weight")
            tensors[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.1
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=generator) * 0.1
    return tensors


def apply_lora(model: Any, lora: dict[str, Tensor]) -> Any:
    """Patch a MODEL with a LoRA at strength 1; returns the patched clone."""
    return comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)[0]


def count_hooks(module: torch.nn.Module) -> int:
    """Count the forward hooks and forward pre-hooks of all submodules."""
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def relative_error(value: Tensor, reference: Tensor) -> float:
    """||value - reference|| / ||reference||."""
    return float((value - reference).norm() / reference.norm())


def _list_folder(kind: str, path: str) -> None:
    folder_paths.add_model_folder_path(kind, str(Path(path).parent))
    folder_paths.filename_list_cache.clear()
