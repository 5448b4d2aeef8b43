"""Quantize Text Encoder and Save Quantized Text Encoder in a real ComfyUI.

The encoders are Qwen3-0.6B, two layers deep, and the two of Flux: a CLIP-L beside a T5-XXL that is narrow but has all
that the host recognises it by. Their weights are random.
"""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tests.comfyui.harness import PACK, Host

SETUP = """
import json, os
import folder_paths, pack_nodes
import comfy.ops, comfy.sd, comfy.sd1_clip
import comfy.text_encoders.llama as llama, comfy.text_encoders.t5 as t5
from pack_nodes import call, NEAREST
from safetensors.torch import save_file
pack = pack_nodes.load(root)
folder_paths.set_output_directory(os.path.abspath("output"))
torch.manual_seed(0)

def save_random(path, module):
    tensors = {}
    for key, like in module.state_dict().items():
        values = torch.randn(like.shape) * 0.03
        tensors[key] = (1 + values if "norm" in key else values).bfloat16()
    save_file(tensors, path)

def quantize(clip, fmt, **settings):
    return call(pack.QuantizeTextEncoder, clip=clip, format=fmt, profile="auto", rounding=NEAREST, **settings)

def encode(clip):
    cond, pooled = clip.encode_from_tokens(clip.tokenize("a handwritten seven"), return_pooled=True)
    return torch.cat([part.float().flatten() for part in (cond, pooled) if part is not None])

def describe(name, clip, load, settings):
    before = encode(clip)
    outputs[name] = {}
    for fmt, options in settings.items():
        node = quantize(clip, fmt, **options)
        made = node.args[0]
        encoded = encode(made)
        written = call(pack.SaveQuantizedTextEncoder, clip=made, filename_prefix=f"clip/{name}_{fmt}").args[0]
        reloaded = load(written)
        deep = made.clone()
        deep.patcher = made.patcher.clone(force_deepcopy=True)
        deep.cond_stage_model = deep.patcher.model
        outputs[name][fmt] = {
            "reloaded equal": torch.equal(encoded, encode(reloaded)),
            "deep copy": deep.cond_stage_model is not made.cond_stage_model and torch.equal(encoded, encode(deep)),
            "error": float((encoded - before).norm() / before.norm()),
            "sizes": [patcher.model_size() for patcher in (made.patcher, clip.patcher)],
            "layers": sorted(inside.quantized_layers(made.cond_stage_model)),
            "reported": len(pack_nodes.layers(node)),
            "listed": os.path.basename(written) in folder_paths.get_filename_list("text_encoders"),
        }
    outputs[f"{name} unchanged"] = torch.equal(before, encode(clip))
"""

QWEN = (
    SETUP
    + """
whole = llama.Qwen3_06BConfig
llama.Qwen3_06BConfig = lambda **options: whole(**{**options, "num_hidden_layers": 2})
save_random("qwen.safetensors", llama.Qwen3_06B({}, torch.bfloat16, "cpu", comfy.ops.manual_cast))
folder_paths.add_model_folder_path("text_encoders", os.path.abspath("output/clip"))

def load(path):
    return comfy.sd.load_clip([path])

clip = load("qwen.safetensors")
blockwise = {"embeddings": True, "fallback": "int8_row"}
formats = {"int8_row": {"embeddings": True}, "float8_e4m3fn": {}, "mxfp8": {}, "int8_blockwise": blockwise}
describe("qwen", clip, load, formats)
kept = quantize(clip, "int8_row", embeddings=True)
outputs["kept"] = "nothing was rounded" in kept.ui["text"][0]
"""
)

FLUX = (
    SETUP
    + """
narrow = {"d_model": 64, "d_kv": 8, "num_heads": 4}
with open(os.path.join(os.path.dirname(comfy.sd.__file__), "text_encoders", "t5_config_xxl.json")) as file:
    config = {**json.load(file), **narrow}
save_random("t5.safetensors", t5.T5(config, torch.bfloat16, "cpu", comfy.ops.manual_cast))
save_random("clip_l.safetensors", comfy.sd1_clip.SDClipModel(dtype=torch.bfloat16).transformer)
folder_paths.add_model_folder_path("text_encoders", os.path.abspath("output/clip"))

def load(path):
    options = {"t5xxl_model_config": narrow}
    return comfy.sd.load_clip(["clip_l.safetensors", path], clip_type=comfy.sd.CLIPType.FLUX, model_options=options)

describe("flux", load("t5.safetensors"), load, {"int8_row": {}, "float8_e4m3fn": {}})
try:
    quantize(comfy.sd.load_clip(["clip_l.safetensors"]), "int8_row")
except Exception as error:
    outputs["refusal"] = str(error)
"""
)

CASES = [("qwen", fmt) for fmt in ("int8_row", "float8_e4m3fn", "mxfp8", "int8_blockwise")]
CASES += [("flux", fmt) for fmt in ("int8_row", "float8_e4m3fn")]


@pytest.fixture(scope="module")
def made(host: Host) -> dict[str, Any]:
    return host.run(QWEN, root=str(PACK)) | host.run(FLUX, root=str(PACK))


@pytest.mark.parametrize(("encoder", "fmt"), CASES)
def test_the_graphs_encoder_encodes_as_the_saved_file(made: dict[str, Any], encoder: str, fmt: str) -> None:
    assert made[encoder][fmt]["reloaded equal"]
    assert made[encoder][fmt]["listed"]


@pytest.mark.parametrize("fmt", ["int8_row", "float8_e4m3fn", "mxfp8", "int8_blockwise"])
def test_it_encodes_close_to_the_float_encoder(made: dict[str, Any], fmt: str) -> None:
    """Not asked of the T5: with random weights its 24 layers make much of any difference."""
    assert 0 < made["qwen"][fmt]["error"] < 0.13


@pytest.mark.parametrize(("encoder", "fmt"), CASES)
def test_it_is_smaller_and_can_be_copied(made: dict[str, Any], encoder: str, fmt: str) -> None:
    smaller, larger = made[encoder][fmt]["sizes"]
    assert smaller < larger
    assert made[encoder][fmt]["deep copy"]


@pytest.mark.parametrize(("encoder", "fmt"), CASES)
def test_every_reported_layer_is_quantized(made: dict[str, Any], encoder: str, fmt: str) -> None:
    assert len(made[encoder][fmt]["layers"]) == made[encoder][fmt]["reported"] > 0


@pytest.mark.parametrize("encoder", ["qwen", "flux"])
def test_the_source_stays_as_it_was(made: dict[str, Any], encoder: str) -> None:
    assert made[f"{encoder} unchanged"]


def test_embeddings_are_quantized_on_request(made: dict[str, Any]) -> None:
    embedding = "qwen3_06b.transformer.model.embed_tokens"
    assert embedding in made["qwen"]["int8_row"]["layers"]
    assert embedding in made["qwen"]["int8_blockwise"]["layers"], "as int8_row, the fall-back: blocks are not looked up"
    assert embedding not in made["qwen"]["float8_e4m3fn"]["layers"]


def test_the_same_work_is_done_once(made: dict[str, Any]) -> None:
    assert made["kept"]


def test_beside_a_t5_a_clip_l_stays_in_floating_point(made: dict[str, Any]) -> None:
    assert {layer.split(".")[0] for layer in made["flux"]["int8_row"]["layers"]} == {"t5xxl"}


def test_a_clip_l_alone_is_refused_with_the_reason(made: dict[str, Any]) -> None:
    assert "clip_l cannot be quantized" in made["refusal"]
    assert "T5-XXL and llama-style" in made["refusal"]
