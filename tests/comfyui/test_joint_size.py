"""Quantize to a Size in a real ComfyUI: the shipped model and text encoder within one target."""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors.torch import load_file

GIGABYTES = 0.0038
"""Within reach of 8 bits alone, as in a ComfyUI without 6 and 4 bits."""
BOTH = pytest.mark.parametrize("case", ["calibrated", "uncalibrated"])


@pytest.fixture(scope="module")
def results(host: Host) -> dict[str, Any]:
    return host.call(
        "tests.comfyui.programs.joint_size:quantize_to_size",
        source=example_model("digits_wan.safetensors"),
        encoder=example_model("digits_gemma2.safetensors"),
        table=load_file(example_model("digits_conditioning.safetensors"))["conditioning"],
        gigabytes=GIGABYTES,
        timeout=1800,
    )


@BOTH
def test_model_and_encoder_fit_the_size_together(results: dict[str, Any], case: str) -> None:
    result, target = results[case], GIGABYTES * 1e9
    assert 0.98 * target < result["totals"]["bytes_after"] <= target
    assert result["precision"]["chosen"]["nbytes"] == result["totals"]["bytes_after"]
    assert len(result["rows"]) == result["quantized"]
    assert {row["name"].split(".")[0] for row in result["rows"]} == {"model", "text_encoder"}


@BOTH
def test_both_are_saved_and_load_identically(results: dict[str, Any], case: str) -> None:
    assert results[case]["model_equal"]
    assert results[case]["clip_equal"]


@BOTH
def test_layers_are_calibrated_where_a_calibration_is_linked(results: dict[str, Any], case: str) -> None:
    measured = {row["errors"]["output_w8a8"] is not None for row in results[case]["rows"]}
    assert measured == {case == "calibrated"}


def test_repeated_run_takes_results_from_disk(results: dict[str, Any]) -> None:
    assert "nothing was rounded" in results["again"]


def test_impossible_targets_are_refused_in_one_sentence(results: dict[str, Any]) -> None:
    assert "ask for more" in results["too_small"]
    assert "has the format int8_row, which leaves nothing to choose" in results["named_format"]


def test_measuring_shows_its_progress(results: dict[str, Any]) -> None:
    measuring = [(done, total) for stage, done, total in results["progress"] if stage == "measuring"]
    total = measuring[-1][1]
    assert total >= results["uncalibrated"]["quantized"] and measuring[-1][0] == total
    assert [done for done, _ in measuring] == sorted(done for done, _ in measuring) and len(measuring) > 3
    stages = [stage for stage, _, _ in results["progress"]]
    assert stages.index("rounding") > max(i for i, stage in enumerate(stages) if stage == "measuring")


def test_another_size_measures_nothing_again(results: dict[str, Any]) -> None:
    assert results["measured_again"] == 0
    assert results["smaller"] <= 0.97 * GIGABYTES * 1e9
