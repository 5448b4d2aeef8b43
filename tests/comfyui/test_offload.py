"""A quantized model in ComfyUI's low memory: loaded or unloaded in part, taken off the device, with and without LoRA.

Without a GPU the host never does so by itself. Here it is told how many bytes of weights have room, and everything that
follows is its own: what stays outside is cast for each use, and LoRAs are then applied to the dequantized weight.
"""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tests.comfyui.harness import PACK, Host, example_model
from safetensors.torch import load_file

CODE = """
import folder_paths, pack_nodes
from contextlib import contextmanager
import comfy.model_management as management, comfy.sd
from pack_nodes import call, NEAREST
pack = pack_nodes.load(root)
folder_paths.set_output_directory(output)

@contextmanager
def room(weights):
    load = management.LoadedModel.model_load
    # As load_models_gpu computes it, but for the free memory.
    limited = lambda loaded, _, **how: load(loaded, weights - loaded.model_loaded_memory() or 0.1, **how)
    management.LoadedModel.model_load = limited
    try:
        yield
    finally:
        management.LoadedModel.model_load = load

def with_lora(patcher):
    return comfy.sd.load_lora_for_models(patcher, None, dict(lora), 1.0, 0.0)[0]

def sample(patcher):
    return pack_nodes.sample(patcher, table)

def whole(patcher):
    management.unload_all_models()
    return sample(patcher)

def part_loaded(patcher):
    management.unload_all_models()
    with room(0.6 * patcher.model_size()):
        return sample(patcher)

def nothing_loaded(patcher):
    management.unload_all_models()
    with room(0.1):
        return sample(patcher)

def part_unloaded(patcher):
    whole(patcher)
    with room(0.6 * patcher.model_size()):
        return sample(patcher)

def more_loaded(patcher):
    part_loaded(patcher)
    return sample(patcher)

def detached(patcher):
    part_loaded(patcher)
    patcher.detach()
    return sample(patcher)

def share(patcher):
    return patcher.loaded_size() / patcher.model_size()

def error(a, b):
    return float((a - b).norm() / b.norm())

source, _ = inside.load_unet(source)
lora, generator = {}, torch.Generator().manual_seed(1)
for key, weight in source.model.state_dict().items():
    if ".blocks." in key and weight.ndim == 2 and key.endswith(".weight"):
        name = key.removesuffix(".weight")
        lora[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.1
        lora[f"{name}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=generator) * 0.1

def quantize():
    return call(pack.QuantizeModel, model=source, format=fmt, profile="auto", rounding=NEAREST)

made = quantize().args[0]
path = call(pack.SaveQuantizedModel, model=made, filename_prefix=f"diffusion_models/{fmt}").args[0]
loaded, _ = inside.load_unet(path)
plain, patched = whole(made), whole(with_lora(made))
outputs["lora effect"] = error(plain, patched)
for state in (whole, part_loaded, nothing_loaded, part_unloaded, more_loaded, detached):
    latents, made_share, file_latents = state(made), share(made), state(loaded)
    made_lora, file_lora = with_lora(made), with_lora(loaded)
    lora_latents, patches = state(made_lora), made_lora.lowvram_patch_counter()
    outputs[state.__name__] = {
        "loaded": made_share,
        "patches applied at each use": patches,
        "as whole": torch.equal(latents, plain),
        "as the file": torch.equal(latents, file_latents),
        "as the file with lora": torch.equal(lora_latents, state(file_lora)),
        "lora error": error(lora_latents, patched),
    }
outputs["without lora again"] = torch.equal(sample(made), plain)
part_loaded(with_lora(source))
outputs["of a source in part"] = torch.equal(whole(quantize().args[0]), plain)
"""

ALL, SOME, NONE = (1, 1), (0.1, 0.9), (0, 0)
STATES = {
    "whole": ALL,
    "part_loaded": SOME,
    "nothing_loaded": NONE,
    "part_unloaded": SOME,
    "more_loaded": ALL,
    "detached": ALL,
}
"""What is done to a model before it samples, and the share of its weights that is then loaded, at least and at most."""


@pytest.fixture(scope="module", params=["int8_convrot", "float8_e4m3fn", "int8_blockwise"])
def ran(request: pytest.FixtureRequest, host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    source, output = str(example_model("digits_wan.safetensors")), str(tmp_path_factory.mktemp("output"))
    return host.run(CODE, root=str(PACK), source=source, table=table, output=output, fmt=request.param)


@pytest.mark.parametrize("state", STATES)
def test_the_share_of_the_weights_is_loaded_that_has_room(ran: dict[str, Any], state: str) -> None:
    least, most = STATES[state]
    assert least <= ran[state]["loaded"] <= most
    assert STATES[state] == ALL or ran[state]["patches applied at each use"] > 0


@pytest.mark.parametrize("state", STATES)
def test_latents_do_not_depend_on_what_is_loaded(ran: dict[str, Any], state: str) -> None:
    assert ran[state]["as whole"]
    assert ran[state]["as the file"]


@pytest.mark.parametrize("state", STATES)
def test_a_lora_works_as_on_the_saved_file(ran: dict[str, Any], state: str) -> None:
    assert ran[state]["as the file with lora"]
    # What is not loaded is not rounded again with the LoRA in it, so latents differ a little.
    assert ran[state]["lora error"] < ran["lora effect"] / 4


def test_nothing_of_it_stays(ran: dict[str, Any]) -> None:
    assert ran["without lora again"]
    assert ran["of a source in part"]
