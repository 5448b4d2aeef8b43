"""Programs of test_example_encoder.py."""

from __future__ import annotations

import os
from typing import Any

import comfy.sample
import comfy.sd
import folder_paths
import torch
from calibrated_rounding.tools.comfyui.inside.models import describe_quantized_layers, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import NEAREST, call, load_extension
from torch import Tensor

extension = load_extension()

PROMPTS = ("a handwritten seven", "")


def quantize_in_formats(name: str, formats: list[str]) -> dict[str, Any]:
    """Quantize a listed text encoder in the graph and as a file, and reload both."""
    clip = load(name)
    reference = encode_prompts(clip)
    results = {fmt: quantize_to(clip, name, fmt, reference) for fmt in formats}
    return {"formats": results, "source_unchanged": is_equal(clip, reference)}


def load(path: str) -> Any:
    folder_paths.set_output_directory(os.path.abspath("output"))
    folder_paths.add_model_folder_path("text_encoders", os.path.abspath("output/clip"))
    return call(extension.LoadExampleTextEncoder, file=os.path.basename(path)).args[0]


def encode(clip: Any, prompt: str) -> Tensor:
    """Conditioning ``[1, tokens, width]``."""
    rows: Tensor = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]
    return rows


def encode_prompts(clip: Any) -> list[Tensor]:
    return [encode(clip, prompt) for prompt in PROMPTS]


def is_equal(clip: Any, reference: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(encode_prompts(clip), reference, strict=True))


def quantize_to(clip: Any, name: str, fmt: str, reference: list[Tensor]) -> dict[str, Any]:
    settings = {"format": fmt, "profile": "auto", "rounding": NEAREST}
    quantized = call(extension.QuantizeTextEncoder, clip=clip, **settings).args[0]
    encodings = encode_prompts(quantized)
    saved = call(extension.SaveQuantizedTextEncoder, clip=quantized, filename_prefix=f"clip/graph_{fmt}").args[0]
    file = call(extension.QuantizeFile, file=f"text_encoders/{name}", name=f"file_{fmt}", **settings).args[0]
    return {
        "layers": len(describe_quantized_layers(quantized.cond_stage_model)),
        "error": relative_error(encodings[0], reference[0]),
        "saved_equal": is_equal(load(saved), encodings),
        "file_equal": is_equal(load(file), encodings),
    }


def draw_prompts(name: str, model: str, batches: list[list[str]], strange: list[str]) -> dict[str, Any]:
    """Sample a digit for each prompt; encode strange prompts as well.

    Returns:
        latents: ``[prompts, 16, 1, 8, 8]``, batch after batch.
        strange_finite: Whether each strange prompt's conditioning is finite.
    """
    clip = load(name)
    patcher = comfy.sd.load_diffusion_model(model)
    return {
        "latents": torch.cat([draw_batch(patcher, clip, batch) for batch in batches]),
        "strange_finite": [bool(encode(clip, prompt).isfinite().all()) for prompt in strange],
    }


def draw_batch(model: Any, clip: Any, prompts: list[str]) -> Tensor:
    empty = torch.zeros(len(prompts), 16, 1, 8, 8)
    positive, negative = torch.cat([encode(clip, prompt) for prompt in prompts]), encode(clip, "")
    latents: Tensor = comfy.sample.sample(
        model, comfy.sample.prepare_noise(empty, 0), 12, 2.0, "euler", "simple",
        [[positive, {}]], [[negative, {}]], empty, seed=0, disable_pbar=True,
    )  # fmt: skip
    return latents
