"""Quantize Text Encoder and Save Quantized Text Encoder in a real ComfyUI.

The encoders are small and random (programs/small_encoders.py): Qwen3-0.6B, and the CLIP-L and T5-XXL of Flux.
"""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host

QWEN: dict[str, dict[str, Any]] = {
    "int8_row": {"embeddings": True},
    "float8_e4m3fn": {},
    "mxfp8": {},
    "int8_blockwise": {"embeddings": True, "fallback": "int8_row"},
}
FLUX: dict[str, dict[str, Any]] = {"int8_row": {}, "float8_e4m3fn": {}}
CASES = [*(("qwen", fmt) for fmt in QWEN), *(("flux", fmt) for fmt in FLUX)]


@pytest.fixture(scope="module")
def results(host: Host) -> dict[str, Any]:
    return {
        "qwen": host.call("tests.comfyui.programs.quantize_encoder:quantize_qwen", formats=QWEN),
        "flux": host.call("tests.comfyui.programs.quantize_encoder:quantize_flux_pair", formats=FLUX),
    }


@pytest.mark.parametrize(("encoder", "fmt"), CASES)
def test_saved_encoder_encodes_identically(results: dict[str, Any], encoder: str, fmt: str) -> None:
    result = results[encoder]["formats"][fmt]
    assert result["reloaded_equal"]
    assert result["listed"]


@pytest.mark.parametrize("fmt", QWEN)
def test_encodings_stay_close_to_float(results: dict[str, Any], fmt: str) -> None:
    """Not asked of the T5: with random weights its 24 layers amplify any difference."""
    assert 0 < results["qwen"]["formats"][fmt]["error"] < 0.13


@pytest.mark.parametrize(("encoder", "fmt"), CASES)
def test_quantized_encoder_is_smaller_and_copyable(results: dict[str, Any], encoder: str, fmt: str) -> None:
    result = results[encoder]["formats"][fmt]
    assert result["size"] < result["source_size"]
    assert result["deep_copy"]


@pytest.mark.parametrize(("encoder", "fmt"), CASES)
def test_every_reported_layer_is_quantized(results: dict[str, Any], encoder: str, fmt: str) -> None:
    result = results[encoder]["formats"][fmt]
    assert len(result["layers"]) == result["reported"] > 0


@pytest.mark.parametrize("encoder", ["qwen", "flux"])
def test_source_encoder_stays_unchanged(results: dict[str, Any], encoder: str) -> None:
    assert results[encoder]["source_unchanged"]


def test_embeddings_are_quantized_on_request(results: dict[str, Any]) -> None:
    embedding, formats = "qwen3_06b.transformer.model.embed_tokens", results["qwen"]["formats"]
    assert embedding in formats["int8_row"]["layers"]
    assert embedding in formats["int8_blockwise"]["layers"], "as int8_row, the fallback: blocks cannot be looked up"
    assert embedding not in formats["float8_e4m3fn"]["layers"]


def test_repeated_quantization_uses_cache(results: dict[str, Any]) -> None:
    assert results["qwen"]["cached"]


def test_clip_l_beside_t5_stays_float(results: dict[str, Any]) -> None:
    layers = results["flux"]["formats"]["int8_row"]["layers"]
    assert {layer.split(".")[0] for layer in layers} == {"t5xxl"}


def test_clip_l_alone_is_refused(results: dict[str, Any]) -> None:
    assert "clip_l cannot be quantized" in results["flux"]["clip_l_error"]
    assert "T5-XXL and llama-style" in results["flux"]["clip_l_error"]
