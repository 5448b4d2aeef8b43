"""The text encoder of the examples and the node that loads it, in a real ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calibrated_rounding.tools.comfyui import Host, HostError, Server, example_model
from calibrated_rounding.tools.comfyui.graphs import pack_node, stock_node
from calibrated_rounding.tools.example_data import from_model_latent, from_wan_latent, load_pictures
from calibrated_rounding.tools.example_prompts import HELD_OUT, fill_template
from torch import Tensor

SHIPPED = "digits_gemma2.safetensors"
FORMATS = ("int8_row", "int8_convrot", "float8_e4m3fn", "mxfp8")
STRANGE = ("", " ", "(seven:1.3) [ink", "naïve 漢字 🙂", "<end_of_turn>", "7" * 300)
TEMPLATE = HELD_OUT[0]


@pytest.fixture(scope="module")
def quantized(host: Host) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.example_encoder:quantize_in_formats", name=SHIPPED, formats=FORMATS)


@pytest.fixture(scope="module")
def drawn(host: Host) -> dict[str, Any]:
    batches = [[fill_template(TEMPLATE, digit, numeral) for digit in range(10)] for numeral in (False, True)]
    model = example_model("digits_wan.safetensors")
    function = "tests.comfyui.programs.example_encoder:draw_prompts"
    return host.call(function, name=SHIPPED, model=model, batches=batches, strange=STRANGE)


def test_shipped_encoder_is_the_default(server: Server) -> None:
    kind, options = server.object_info("CalibratedRoundingLoadExampleTextEncoder")["input"]["required"]["file"]
    assert options["default"] == SHIPPED
    assert SHIPPED in (options["options"] if kind == "COMBO" else kind)


@pytest.mark.parametrize("fmt", FORMATS)
def test_quantized_encoder_reloads_bit_for_bit(quantized: dict[str, Any], fmt: str) -> None:
    result = quantized["formats"][fmt]
    assert result["layers"] == 21
    assert 0 < result["error"] < 0.05
    assert result["saved_equal"], "by Save Quantized Text Encoder"
    assert result["file_equal"], "by the node Quantize"


def test_source_encoder_stays_unchanged(quantized: dict[str, Any]) -> None:
    assert quantized["source_unchanged"]


def test_unseen_prompts_draw_their_digits(drawn: dict[str, Any]) -> None:
    """Words, then numerals; one of ten may be drawn badly."""
    words, numerals = classify_digits(drawn["latents"]).chunk(2)
    assert (words == torch.arange(10)).sum() >= 9
    assert (numerals == torch.arange(10)).sum() >= 9


def test_any_text_encodes_to_finite_values(drawn: dict[str, Any]) -> None:
    assert drawn["strange_finite"] == [True] * len(STRANGE)


def test_other_file_points_to_load_clip(server: Server) -> None:
    name = server.add_model("text_encoders", example_model("digits_vae.safetensors"), "no_encoder.safetensors")
    graph = {
        "1": pack_node("LoadExampleTextEncoder", file=name),
        "2": stock_node("CLIPTextEncode", text="7", clip=["1", 0]),
        "3": stock_node("PreviewAny", source=["2", 0]),
    }
    with pytest.raises(HostError, match=r"QuantError: 'no_encoder\.safetensors' does not state .* with Load CLIP\."):
        server.execute(graph)


def classify_digits(latents: Tensor) -> Tensor:
    """Find for each latent ``[N, 16, 1, 8, 8]`` the digit whose mean over real handwriting is nearest: ``[N]``."""
    pictures, classes = load_pictures()
    means = torch.stack([pictures[classes == digit].mean(0) for digit in range(10)])
    small = F.adaptive_avg_pool2d(from_model_latent(from_wan_latent(latents)), 8)
    return torch.cdist(small.flatten(1), means.flatten(1)).argmin(1)
