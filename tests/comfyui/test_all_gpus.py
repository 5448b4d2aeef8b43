"""The choice `all GPUs` of the quantize nodes, on two pretend GPUs."""

from __future__ import annotations

from calibrated_rounding.tools.comfyui import Host, example_model


def test_nodes_quantize_on_all_gpus(host: Host) -> None:
    source = example_model("digits_wan.safetensors")
    result = host.call("tests.comfyui.programs.all_gpus:quantize_on_two", source=source)
    assert result["alone"] == ["auto", "cpu"]
    assert result["several"] == ["auto", "cpu", "all GPUs"]
    assert result["used"] == [["cuda:0", "cuda:1"]]
    assert result["same"]
    assert result["layers"] == result["expected_layers"]
