"""Newer versions of ComfyUI in which hooks would miss layers: recording, probing and encoding see every call."""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors.torch import load_file

LAYER = "blocks.0.ffn.2"
FLAGS = ("comfy_force_forward", "_full_precision_mm")
"""Since 0.39, and in 0.38."""


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    return {"source": example_model("digits_wan.safetensors"), "table": table}


@pytest.mark.parametrize("flag", FLAGS)
def test_fused_layers_are_recorded(host: Host, inputs: dict[str, Any], flag: str) -> None:
    result = host.call("tests.comfyui.programs.plain_forward:record", **inputs, flag=flag)
    assert result["recorded"] and result["unrecorded"] == []
    assert (result["plain"], result["left"]) == ([True], [])


def test_layers_that_hooks_cannot_see_are_named(host: Host, inputs: dict[str, Any]) -> None:
    result = host.call("tests.comfyui.programs.plain_forward:record", **inputs, flag=None)
    assert not result["recorded"]
    assert result["unrecorded"] == [LAYER]
    assert f"Not recorded: 1 layers that did not run, or whose inputs were not finite ({LAYER})" in result["summary"]


def test_fused_layers_are_probed(host: Host, inputs: dict[str, Any]) -> None:
    result = host.call("tests.comfyui.programs.plain_forward:probe", **inputs, flag=FLAGS[0])
    assert result["measured"] == [LAYER]
    assert (result["plain"], result["left"]) == ([True], [])


def test_fused_layers_of_encoders_are_recorded(host: Host) -> None:
    source = example_model("digits_gemma2.safetensors")
    result = host.call("tests.comfyui.programs.plain_forward:encode", source=source, flag=FLAGS[0])
    assert result["recorded"] and result["unrecorded"] == []
    assert (result["plain"], result["left"]) == ([True], [])


def test_compiler_is_off_while_recording(host: Host, inputs: dict[str, Any]) -> None:
    outcomes = host.call("tests.comfyui.programs.plain_forward:watch_compiler", **inputs)
    for case, after in (("absent", None), ("on", False), ("off", True)):
        assert outcomes[case]["during"] == ([None] if case == "absent" else [True]), case
        assert outcomes[case]["after"] is after, case
        assert outcomes[case]["after an error"] == ["broken", after, []], case
