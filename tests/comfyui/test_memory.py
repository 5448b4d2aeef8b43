"""Memory runs out while quantizing or calibrating: the error is one sentence, and the loaded model stays unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors.torch import load_file

THIRD = "LayerError: Layer 'blocks.0.self_attn.v' (256 x 256) does not fit in the memory of cpu; close other"
CASES = ("calibrating", "nearest", "calibrated")


@pytest.fixture(scope="module")
def results(host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return host.call(
        "tests.comfyui.programs.out_of_memory:run_out_of_memory",
        source=example_model("digits_wan.safetensors"),
        table=load_file(example_model("digits_conditioning.safetensors"))["conditioning"],
        output=tmp_path_factory.mktemp("output"),
    )


@pytest.mark.parametrize("rounding", ["nearest", "calibrated"])
def test_too_large_layer_is_named(results: dict[str, Any], rounding: str) -> None:
    assert results[rounding]["message"].startswith(THIRD)
    assert "\n" not in results[rounding]["message"]


def test_comfyui_reports_memory_while_calibrating(results: dict[str, Any]) -> None:
    assert results["calibrating"]["message"].startswith("OutOfMemoryError")
    assert results["calibrating"]["hooks_during"] > 0


@pytest.mark.parametrize("case", CASES)
def test_loaded_model_stays_unchanged(results: dict[str, Any], case: str) -> None:
    assert results[case]["latents_equal"]
    assert results[case]["weights_equal"]


@pytest.mark.parametrize("case", CASES)
def test_no_hook_or_unfinished_file_is_left(results: dict[str, Any], case: str) -> None:
    assert results[case]["hooks_left"] == 0
    assert results[case]["files_left"] == []


def test_next_run_succeeds(results: dict[str, Any]) -> None:
    assert results["next_layers"] == 19
