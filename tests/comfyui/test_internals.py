"""ComfyUI's internals where versions differ: previews of nested latents, markers, and symbols that may be missing."""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors.torch import load_file


def test_nested_latents_are_previewed(host: Host) -> None:
    source = example_model("digits_wan.safetensors")
    result = host.call("tests.comfyui.programs.internals:preview_nested", source=source)
    assert result["previews"] == [True, True]


def test_markers_stay_on_the_cpu(host: Host) -> None:
    assert host.call("tests.comfyui.programs.internals:copy_markers") == {
        "layer.weight": "meta",
        "packed.weight": "meta",
        "layer.comfy_quant": "cpu",
        "block.comfy_attention.config": "cpu",
    }


def test_encoders_with_merged_layers_are_left_to_quantize_file(host: Host) -> None:
    source = example_model("digits_gemma2.safetensors")
    result = host.call("tests.comfyui.programs.internals:merge_weights", source=source)
    assert result["refusal"] == (
        "This ComfyUI has merged layers of the text encoder gemma2_2b that are separate in its file; quantize the file "
        "with the node Quantize."
    )


@pytest.fixture(scope="module")
def lost(host: Host) -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    source = example_model("digits_wan.safetensors")
    return host.call("tests.comfyui.programs.internals:lose_symbols", source=source, table=table)


def test_missing_symbols_cost_one_feature_each(lost: dict[str, Any]) -> None:
    assert lost["picture"] is None
    compiled, bypassed = lost["refusals"]
    assert compiled.endswith("put the node that compiles after the one that quantizes.")
    assert bypassed.startswith("The injection 'bypass_lora' of this model is bound to its float weights")


def test_missing_symbols_are_logged_once(lost: dict[str, Any]) -> None:
    names = ("ExecutionBlocker", "BypassInjectionManager", "set_torch_compile_wrapper")
    assert sorted(lost["warnings"]) == sorted(set(lost["warnings"]))
    assert [sum(name in text for text in lost["warnings"]) for name in names] == [1, 1, 1]


def test_devices_are_asked_where_comfyui_can_tell(host: Host) -> None:
    result = host.call("tests.comfyui.programs.internals:ask_devices")
    more = [name for name in result["no int8"] if name not in result["none known"]]
    assert more == ["int8_tensor", "int8_row", "int8_convrot", "w6a8", "w4a8"]
    assert not {"float8_e4m3fn", "mxfp8"} & set(result["none known"])
