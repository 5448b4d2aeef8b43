"""Text encoders that the engine writes, in ComfyUI's own CLIPLoader.

The encoder is Qwen3-0.6B with two layers of random weights; ComfyUI builds it with that depth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, Report, quantize_file
from calibrated_rounding.tools.comfyui import Host
from safetensors.torch import save_file

WIDTH, FEED_FORWARD, LAYERS, VOCABULARY = 1024, 3072, 2, 151936
LINEARS = {
    "self_attn.q_proj": (2048, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, 2048),
    "mlp.gate_proj": (FEED_FORWARD, WIDTH),
    "mlp.up_proj": (FEED_FORWARD, WIDTH),
    "mlp.down_proj": (WIDTH, FEED_FORWARD),
}
NORMS = {
    "input_layernorm": WIDTH,
    "post_attention_layernorm": WIDTH,
    "self_attn.q_norm": 128,
    "self_attn.k_norm": 128,
}

RECIPES = {
    "int8_row": Recipe(format="int8_row", embeddings=True),
    "int8_convrot": Recipe(format="int8_convrot"),
    "float8_e4m3fn": Recipe(format="float8_e4m3fn", embeddings=True),
    "int8_blockwise": Recipe(format="int8_blockwise"),
    "w6a8": Recipe(format="w6a8"),
    "w4a8": Recipe(format="w4a8"),
    "nvfp4": Recipe(format="nvfp4"),
}
LARGEST = {
    "int8_row": 0.04,
    "int8_convrot": 0.035,
    "float8_e4m3fn": 0.13,
    "int8_blockwise": 0.04,
    "w6a8": 0.08,
    "w4a8": 0.3,
    "nvfp4": 0.4,
}
"""Largest relative error of the encoded prompt."""

PROMPT = "a handwritten seven, ink on paper"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random bf16 weights with the keys and shapes of Qwen3-0.6B, two layers deep."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.03).bfloat16()

    layers = [f"model.layers.{i}" for i in range(LAYERS)]
    tensors = {"model.embed_tokens.weight": random(VOCABULARY, WIDTH), "model.norm.weight": 1 + random(WIDTH)}
    tensors |= {f"{layer}.{name}.weight": random(*shape) for layer in layers for name, shape in LINEARS.items()}
    tensors |= {f"{layer}.{name}.weight": 1 + random(size) for layer in layers for name, size in NORMS.items()}
    path = tmp_path_factory.mktemp("encoder") / "qwen3.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def reports(encoder: Path) -> dict[str, Report]:
    """The encoder quantized, a file for each recipe beside it."""
    return {name: quantize_file(encoder, encoder.with_stem(name), recipe) for name, recipe in RECIPES.items()}


@pytest.fixture(scope="module")
def encoded(host: Host, known_formats: list[str], encoder: Path, reports: dict[str, Report]) -> dict[str, Any]:
    paths = {"float": encoder} | {name: encoder.with_stem(name) for name in reports if name in known_formats}
    return host.call("tests.comfyui.programs.load_encoders:encode_with_files", paths=paths, prompt=PROMPT)


@pytest.mark.parametrize("fmt", RECIPES)
def test_encoder_loads_quantized_without_warning(encoded: dict[str, Any], reports: dict[str, Report], fmt: str) -> None:
    assert encoded[fmt]["warnings"] == encoded["float"]["warnings"]
    assert encoded[fmt]["layers"].keys() == {layer.name for layer in reports[fmt].layers}
    assert ("model.embed_tokens" in encoded[fmt]["layers"]) == RECIPES[fmt].embeddings


@pytest.mark.parametrize("fmt", RECIPES)
def test_encodings_stay_close_to_float(encoded: dict[str, Any], fmt: str) -> None:
    encoding, reference = (encoded[key]["encoding"] for key in (fmt, "float"))
    assert float((encoding - reference).norm() / reference.norm()) <= LARGEST[fmt]
