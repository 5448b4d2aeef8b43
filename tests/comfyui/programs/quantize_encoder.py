"""Programs of test_nodes_encoder.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import comfy.sd
import folder_paths
import torch
from calibrated_rounding.tests.comfyui.programs import small_encoders
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import describe_quantized_layers, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import call, layer_rows, load_extension, quantize_encoder
from torch import Tensor

extension = load_extension()


def quantize_qwen(formats: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Quantize, save and reload Qwen; ``formats`` gives each format's further settings."""
    prepare()
    small_encoders.shrink_qwen()
    small_encoders.save_random("qwen.safetensors", small_encoders.build_qwen())
    clip = load_qwen("qwen.safetensors")
    result = quantize_to(clip, "qwen", load_qwen, formats)
    again = quantize_encoder(clip, "int8_row", embeddings=True)
    return {**result, "cached": "nothing was rounded" in again.ui["text"][0]}


def quantize_flux_pair(formats: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Quantize, save and reload the T5-XXL of Flux beside its CLIP-L; then the CLIP-L alone."""
    prepare()
    small_encoders.save_random("t5.safetensors", small_encoders.build_t5())
    small_encoders.save_random("clip_l.safetensors", small_encoders.build_clip_l())
    result = quantize_to(load_flux("t5.safetensors"), "flux", load_flux, formats)
    alone = comfy.sd.load_clip(["clip_l.safetensors"])
    return {**result, "clip_l_error": error_message(lambda: quantize_encoder(alone, "int8_row"))}


def prepare() -> None:
    folder_paths.set_output_directory(os.path.abspath("output"))
    folder_paths.add_model_folder_path("text_encoders", os.path.abspath("output/clip"))
    torch.manual_seed(0)


def load_qwen(path: str) -> Any:
    return comfy.sd.load_clip([path])


def load_flux(path: str) -> Any:
    options = {"t5xxl_model_config": small_encoders.NARROW_T5}
    return comfy.sd.load_clip(["clip_l.safetensors", path], clip_type=comfy.sd.CLIPType.FLUX, model_options=options)


def encode(clip: Any) -> Tensor:
    cond, pooled = clip.encode_from_tokens(clip.tokenize("a handwritten seven"), return_pooled=True)
    return torch.cat([part.float().flatten() for part in (cond, pooled) if part is not None])


def quantize_to(clip: Any, name: str, load: Callable[[str], Any], formats: dict[str, dict[str, Any]]) -> dict[str, Any]:
    reference = encode(clip)
    results = {fmt: quantize_one(clip, name, load, fmt, settings) for fmt, settings in formats.items()}
    return {"formats": results, "source_unchanged": torch.equal(reference, encode(clip))}


def quantize_one(
    clip: Any, name: str, load: Callable[[str], Any], fmt: str, settings: dict[str, Any]
) -> dict[str, Any]:
    node = quantize_encoder(clip, fmt, **settings)
    quantized = node.args[0]
    encoded = encode(quantized)
    saved = call(extension.SaveQuantizedTextEncoder, clip=quantized, filename_prefix=f"clip/{name}_{fmt}").args[0]
    deep = quantized.clone()
    deep.patcher = quantized.patcher.clone(force_deepcopy=True)
    deep.cond_stage_model = deep.patcher.model
    copied = deep.cond_stage_model is not quantized.cond_stage_model
    return {
        "reloaded_equal": torch.equal(encoded, encode(load(saved))),
        "deep_copy": copied and torch.equal(encoded, encode(deep)),
        "error": relative_error(encoded, encode(clip)),
        "size": quantized.patcher.model_size(),
        "source_size": clip.patcher.model_size(),
        "layers": sorted(describe_quantized_layers(quantized.cond_stage_model)),
        "reported": len(layer_rows(node)),
        "listed": os.path.basename(saved) in folder_paths.get_filename_list("text_encoders"),
    }
