"""The text encoder of the examples and the node that loads it, in a real ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calibrated_rounding.tests.comfyui.harness import PACK, Host, HostError, Server, example_model
from calibrated_rounding.tools.example_data import from_model_latent, from_wan_latent, load_pictures
from calibrated_rounding.tools.example_prompts import HELD_OUT, named
from torch import Tensor

SHIPPED = "digits_gemma2.safetensors"
FORMATS = ("int8_row", "int8_convrot", "float8_e4m3fn", "mxfp8")
STRANGE = ("", " ", "(seven:1.3) [ink", "naïve 漢字 🙂", "<end_of_turn>", "7" * 300)
TEMPLATE = HELD_OUT[0]

SETUP = """
import os
import folder_paths, pack_nodes
from pack_nodes import call, NEAREST
pack = pack_nodes.load(root)
folder_paths.set_output_directory(os.path.abspath("output"))
folder_paths.add_model_folder_path("text_encoders", os.path.abspath("output/clip"))

def load(path):
    return call(pack.LoadExampleTextEncoder, file=os.path.basename(path)).args[0]

def encode(clip, prompt):
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]

clip = load(shipped)
"""

QUANTIZED = (
    SETUP
    + """
PROMPTS = ("a handwritten seven", "")
before = [encode(clip, prompt) for prompt in PROMPTS]

def same(clip, wanted):
    return all(torch.equal(encode(clip, prompt), cond) for prompt, cond in zip(PROMPTS, wanted))

for fmt in formats:
    settings = {"format": fmt, "profile": "auto", "rounding": NEAREST}
    made = call(pack.QuantizeTextEncoder, clip=clip, **settings).args[0]
    wanted = [encode(made, prompt) for prompt in PROMPTS]
    saved = call(pack.SaveQuantizedTextEncoder, clip=made, filename_prefix=f"clip/graph_{fmt}").args[0]
    written = call(pack.QuantizeFile, file=f"text_encoders/{shipped}", name=f"file_{fmt}", **settings).args[0]
    outputs[fmt] = {
        "layers": len(inside.quantized_layers(made.cond_stage_model)),
        "error": float((wanted[0] - before[0]).norm() / before[0].norm()),
        "saved": same(load(saved), wanted),
        "written": same(load(written), wanted),
    }
outputs["source"] = same(clip, before)
"""
)

DRAWN = (
    SETUP
    + """
import comfy.sample, comfy.sd
model = comfy.sd.load_diffusion_model(model)
outputs["latents"] = []
for batch in prompts:
    empty = torch.zeros(len(batch), 16, 1, 8, 8)
    positive, negative = torch.cat([encode(clip, prompt) for prompt in batch]), encode(clip, "")
    latents = comfy.sample.sample(
        model, comfy.sample.prepare_noise(empty, 0), 12, 2.0, "euler", "simple",
        [[positive, {}]], [[negative, {}]], empty, seed=0, disable_pbar=True,
    )
    outputs["latents"].append(latents)
outputs["latents"] = torch.cat(outputs["latents"])
outputs["strange"] = [bool(encode(clip, prompt).isfinite().all()) for prompt in strange]
"""
)


@pytest.fixture(scope="module")
def quantized(host: Host) -> dict[str, Any]:
    return host.run(QUANTIZED, root=str(PACK), shipped=SHIPPED, formats=FORMATS)


@pytest.fixture(scope="module")
def drawn(host: Host) -> dict[str, Any]:
    prompts = [[named(TEMPLATE, digit, numeral) for digit in range(10)] for numeral in (False, True)]
    model = str(example_model("digits_wan.safetensors"))
    return host.run(DRAWN, root=str(PACK), shipped=SHIPPED, model=model, prompts=prompts, strange=STRANGE)


def test_the_menu_begins_with_the_shipped_encoder(server: Server) -> None:
    kind, options = server.object_info("CalibratedRoundingLoadExampleTextEncoder")["input"]["required"]["file"]
    assert options["default"] == SHIPPED
    assert SHIPPED in (options["options"] if kind == "COMBO" else kind)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_quantized_encoder_reloads_bit_for_bit(quantized: dict[str, Any], fmt: str) -> None:
    assert quantized[fmt]["layers"] == 21
    assert 0 < quantized[fmt]["error"] < 0.05
    assert quantized[fmt]["saved"], "by Save Quantized Text Encoder"
    assert quantized[fmt]["written"], "by Quantize File"


def test_quantizing_leaves_the_source(quantized: dict[str, Any]) -> None:
    assert quantized["source"]


def test_every_digit_is_drawn_from_a_prompt_that_was_not_trained_on(drawn: dict[str, Any]) -> None:
    """Words, then numerals; one of ten may be drawn badly."""
    words, numerals = digits_seen(drawn["latents"]).chunk(2)
    assert (words == torch.arange(10)).sum() >= 9
    assert (numerals == torch.arange(10)).sum() >= 9


def test_any_text_is_encoded(drawn: dict[str, Any]) -> None:
    assert drawn["strange"] == [True] * len(STRANGE)


def test_a_file_for_load_clip_is_refused_in_one_sentence(server: Server) -> None:
    name = server.add_model("text_encoders", example_model("digits_vae.safetensors"), "no_encoder.safetensors")
    load = {"class_type": "CalibratedRoundingLoadExampleTextEncoder", "inputs": {"file": name}}
    encode = {"class_type": "CLIPTextEncode", "inputs": {"text": "7", "clip": ["1", 0]}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}
    with pytest.raises(HostError, match=r"QuantError: 'no_encoder\.safetensors' does not state .* with Load CLIP\."):
        server.execute({"1": load, "2": encode, "3": shown})


def digits_seen(latents: Tensor) -> Tensor:
    """For each latent [N, 16, 1, 8, 8] the digit whose mean over real handwriting is nearest."""
    pictures, classes = load_pictures()
    means = torch.stack([pictures[classes == digit].mean(0) for digit in range(10)])
    small = F.adaptive_avg_pool2d(from_model_latent(from_wan_latent(latents)), 8)
    return torch.cdist(small.flatten(1), means.flatten(1)).argmin(1)
