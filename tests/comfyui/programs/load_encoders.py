"""Program of test_text_encoders.py."""

from __future__ import annotations

from typing import Any

from calibrated_rounding.tests.comfyui.programs import small_encoders
from calibrated_rounding.tools.comfyui.inside.models import describe_quantized_layers, load_clip
from calibrated_rounding.tools.comfyui.inside.pack import load_extension


def encode_with_files(paths: dict[str, str], prompt: str) -> dict[str, Any]:
    """Load text encoders of two layers with the stock CLIPLoader, and encode a prompt with each."""
    load_extension()  # for int8_blockwise
    small_encoders.shrink_qwen()
    return {name: encode_with_file(path, prompt) for name, path in paths.items()}


def encode_with_file(path: str, prompt: str) -> dict[str, Any]:
    clip, warnings = load_clip(path, "stable_diffusion")
    return {
        "warnings": warnings,
        "layers": describe_quantized_layers(clip.cond_stage_model.qwen3_06b.transformer),
        "encoding": clip.encode_from_tokens(clip.tokenize(prompt)).float(),
    }
