"""A quantized model in ComfyUI's low memory: loaded or unloaded in part, detached, with and without a LoRA.

How ComfyUI is brought into that state without a GPU: programs/low_memory.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors.torch import load_file

ALL, SOME, NONE = (1, 1), (0.1, 0.9), (0, 0)
STATES = {
    "whole": ALL,
    "part_loaded": SOME,
    "nothing_loaded": NONE,
    "part_unloaded": SOME,
    "more_loaded": ALL,
    "detached": ALL,
}
"""State -> the least and the greatest share of the weights that is loaded in it."""


@pytest.fixture(scope="module", params=["int8_convrot", "float8_e4m3fn", "int8_blockwise", "w6a8", "w4a8", "nvfp4"])
def result(
    request: pytest.FixtureRequest, host: Host, known_formats: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    if request.param not in known_formats:
        pytest.skip(f"this ComfyUI does not know {request.param}")
    result = host.call(
        "tests.comfyui.programs.low_memory:sample_in_states",
        source=example_model("digits_wan.safetensors"),
        table=load_file(example_model("digits_conditioning.safetensors"))["conditioning"],
        output=tmp_path_factory.mktemp("output"),
        fmt=request.param,
        states=list(STATES),
    )
    return result | {"fmt": request.param}


@pytest.mark.parametrize("state", STATES)
def test_weights_are_loaded_as_memory_allows(result: dict[str, Any], state: str) -> None:
    least, most = STATES[state]
    assert least <= result["states"][state]["loaded_share"] <= most
    assert STATES[state] == ALL or result["states"][state]["patches_at_use"] > 0


@pytest.mark.parametrize("state", STATES)
def test_latents_do_not_depend_on_memory(result: dict[str, Any], state: str) -> None:
    assert result["states"][state]["equals_whole"]
    assert result["states"][state]["equals_saved"]


@pytest.mark.parametrize("state", STATES)
def test_lora_works_as_on_saved_file(result: dict[str, Any], state: str) -> None:
    assert result["states"][state]["lora_equals_saved"]
    # Weights that are not loaded are not requantized with the LoRA in them, so latents differ a little.
    share = {"w4a8": 0.8, "nvfp4": 1.1}.get(result["fmt"], 0.25)
    assert result["states"][state]["lora_error"] < share * result["lora_effect"]


def test_model_and_source_stay_unchanged(result: dict[str, Any]) -> None:
    assert result["without_lora_again"]
    assert result["source_in_part_equal"]
