"""Small text encoders with random weights, for the programs that quantize and calibrate them.

Qwen3-0.6B has two layers. The T5-XXL is narrow but has everything that ComfyUI recognises it by.
"""

from __future__ import annotations

import json
import os

import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.llama as llama
import comfy.text_encoders.t5 as t5
import torch
from safetensors.torch import save_file

NARROW_T5 = {"d_model": 64, "d_kv": 8, "num_heads": 4}
SPREAD = 0.03
"""Standard deviation of the weights."""


def shrink_qwen(**sizes: int) -> None:
    """Make ComfyUI build its Qwen3-0.6B with two layers and other sizes."""
    config = llama.Qwen3_06BConfig
    llama.Qwen3_06BConfig = lambda **options: config(**{**options, "num_hidden_layers": 2, **sizes})


def build_qwen() -> torch.nn.Module:
    return llama.Qwen3_06B({}, torch.bfloat16, "cpu", comfy.ops.manual_cast)


def build_t5(file: str = "t5_config_xxl.json") -> torch.nn.Module:
    """Build a T5 with the sizes of one of ComfyUI's configurations, but narrow."""
    folder = os.path.join(os.path.dirname(comfy.sd.__file__), "text_encoders")
    with open(os.path.join(folder, file), encoding="utf-8") as text:
        config = json.load(text) | NARROW_T5
    return t5.T5(config, torch.bfloat16, "cpu", comfy.ops.manual_cast)


def build_clip_l() -> torch.nn.Module:
    return comfy.sd1_clip.SDClipModel(dtype=torch.bfloat16).transformer


def save_random(path: str, module: torch.nn.Module) -> None:
    """Save a module's tensors with normal random values; norms lie around one."""
    tensors = {}
    for key, like in module.state_dict().items():
        values = torch.randn(like.shape) * SPREAD
        tensors[key] = (1 + values if "norm" in key else values).bfloat16()
    save_file(tensors, path)


def save_random_on_subspace(path: str, module: torch.nn.Module) -> None:
    """`save_random` with token embeddings near a space of few dimensions, as trained embeddings are.

    Calibration on some prompts then holds for others.
    """
    state = module.state_dict()
    embedding = next((key for key in ("shared.weight", "model.embed_tokens.weight") if key in state), None)
    if embedding is not None:
        count, width = state[embedding].shape
        rows = torch.randn(count, 24) @ torch.randn(24, width) / 24**0.5
        noise = torch.randn(4096, width)[torch.arange(count) % 4096]
        state[embedding].copy_(SPREAD * rows + SPREAD / 10 * noise)
    for key, tensor in state.items():
        if key != embedding:
            values = torch.randn(tensor.shape) * SPREAD
            tensor.copy_(1 + values if "norm" in key else values)
    save_file({key: tensor.clone() for key, tensor in state.items()}, path)
