"""Memory that ends in the middle of quantizing or calibrating: one sentence, and everything as it was."""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tests.comfyui.harness import PACK, Host, example_model
from safetensors.torch import load_file

CODE = """
import os, folder_paths, pack_nodes
from pack_nodes import call, CALIBRATED, NEAREST
pack = pack_nodes.load(root)
from calibrated_rounding.nodes.pipeline.quantize import cache
from calibrated_rounding.quant.layer import methods
from calibrated_rounding.quant.rounding import calibrated
folder_paths.set_output_directory(output)
folder_paths.set_user_directory(output)
model, _ = inside.load_unet(source)
wanted = pack_nodes.sample(model, table)
own = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
conditions = {"positive": [[table[:2], {}]], "negative": [[table[10:].expand(2, -1, -1), {}]]}
settings = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "rows": 256, "budget_gib": 1.0}

def calibrate():
    latent = {"samples": torch.zeros(2, 16, 1, 8, 8)}
    return call(pack.CalibrateModel, model=model, **conditions, latent_image=latent, seed=0, runs=1, **settings).args[0]

def quantize(rounding, calibration):
    return call(
        pack.QuantizeModel, model=model, format="int8_row", profile="auto", rounding=rounding, calibration=calibration
    )

def hooks():
    return sum(len(module._forward_pre_hooks) for module in model.model.diffusion_model.modules())

def files():
    return sorted(name for _, _, names in os.walk(output) for name in names)

def failing(function, number):
    calls = iter(range(1, 1000))
    def call(*args, **named):
        if next(calls) == number:
            seen.append(hooks())
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")
        return function(*args, **named)
    return call

def attempt(name, owner, attribute, number, action):
    whole = getattr(owner, attribute)
    before = files()
    setattr(owner, attribute, failing(whole, number))
    try:
        action()
        text = None
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    finally:
        setattr(owner, attribute, whole)
    now = model.model.state_dict()
    outputs[name] = {
        "text": text,
        "hooks": hooks(),
        "files": [found for found in files() if found not in before],
        "weights": now.keys() == own.keys() and all(torch.equal(now[key], own[key]) for key in own),
        "latents": torch.equal(wanted, pack_nodes.sample(model, table)),
    }

seen = []
layer = model.model.diffusion_model.blocks[1].ffn[0]
attempt("calibrating", layer, "forward", 3, calibrate)
outputs["hooked"] = seen[0] > 0
calibration = calibrate()
attempt("nearest", methods, "round_nearest", 3, lambda: quantize(NEAREST, None))
attempt("calibrated", calibrated, "round_ldlq", 3, lambda: quantize(CALIBRATED, calibration))
outputs["then"] = len(quantize(CALIBRATED, calibration).ui["calibrated_rounding"][0]["layers"])
"""

THIRD = "LayerError: Layer 'blocks.0.self_attn.v' (256 x 256) does not fit in the memory of cpu; quantize on the CPU"


@pytest.fixture(scope="module")
def left(host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    source, output = str(example_model("digits_wan.safetensors")), str(tmp_path_factory.mktemp("output"))
    return host.run(CODE, root=str(PACK), source=source, table=table, output=output)


@pytest.mark.parametrize("rounding", ["nearest", "calibrated"])
def test_a_layer_that_does_not_fit_is_named_in_one_sentence(left: dict[str, Any], rounding: str) -> None:
    assert left[rounding]["text"].startswith(THIRD)
    assert "\n" not in left[rounding]["text"]


def test_memory_that_ends_while_calibrating_is_comfyui_s_to_tell(left: dict[str, Any]) -> None:
    assert left["calibrating"]["text"].startswith("OutOfMemoryError")
    assert left["hooked"]


@pytest.mark.parametrize("case", ["calibrating", "nearest", "calibrated"])
def test_the_loaded_model_samples_the_same_bit_for_bit(left: dict[str, Any], case: str) -> None:
    assert left[case]["latents"]
    assert left[case]["weights"]


@pytest.mark.parametrize("case", ["calibrating", "nearest", "calibrated"])
def test_no_hook_and_no_file_is_left(left: dict[str, Any], case: str) -> None:
    assert left[case]["hooks"] == 0
    assert left[case]["files"] == []


def test_the_next_try_is_fine(left: dict[str, Any]) -> None:
    assert left["then"] > 0
