"""Sensitivities measured by Calibrate Model in a real ComfyUI: what they leave behind, and how they choose formats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    output = tmp_path_factory.mktemp("output")
    return {"source": example_model("digits_wan.safetensors"), "table": table, "output": output}


@pytest.fixture(scope="module")
def probed(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.sensitivities:measure_sensitivities", **inputs)


def test_every_layer_is_probed(probed: dict[str, Any]) -> None:
    assert sorted(probed["sensitivities"]) == sorted(probed["layers"])
    assert all(value > 0 for value in probed["sensitivities"].values())


def test_probing_leaves_recording_and_model_unchanged(probed: dict[str, Any]) -> None:
    assert probed["same_rows"]
    assert probed["equal_after"]
    assert probed["hooks_left"] == 0


@pytest.mark.parametrize("end", ["error", "interrupt"])
def test_failed_probing_leaves_no_hook(probed: dict[str, Any], end: str) -> None:
    assert probed[end] == {"hooks_during": 2, "raised": True, "hooks_left": 0}
    assert probed["equal_after_failures"]


def test_calibration_file_keeps_sensitivities(probed: dict[str, Any]) -> None:
    assert probed["round_trip"]
    assert probed["text_loaded"] == probed["text"]


def test_report_names_unprobed_layers(probed: dict[str, Any]) -> None:
    layers = probed["layers"]
    assert "Sensitivity" not in probed["text_without"]
    assert f"Sensitivity measured of {len(layers)} of {len(layers)} layers." in probed["text"]
    assert f"of {len(layers) - 2} of {len(layers)} layers; not of {layers[0]}" in probed["text_partial"]
    assert "more probe_steps" in probed["text_partial"]


LAYERS = (
    *("time_embedding.0", "time_projection.1", "text_embedding.0", "blocks.0.self_attn.q", "blocks.0.self_attn.v"),
    *("blocks.0.cross_attn.k", "blocks.0.ffn.2", "blocks.1.cross_attn.v", "blocks.1.ffn.0", "blocks.1.ffn.2"),
)
"""Embedders that a profile keeps, attention and feed-forward layers, early and late."""


@pytest.fixture(scope="module")
def sampled(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    function = "tests.comfyui.programs.sensitivities:choose_by_sensitivity"
    return host.call(function, **inputs, fmt="int8_convrot", layers=LAYERS)


def rank(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).argsort().argsort().float()


def test_cost_ranks_layers_like_latent_errors(sampled: dict[str, Any]) -> None:
    ranks = torch.stack([rank(sampled["costs"]), rank(sampled["latent_errors"])])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.9, dict(zip(LAYERS, zip(*ranks.tolist(), strict=True), strict=True))


def test_sensitivities_improve_latents_at_same_size(sampled: dict[str, Any]) -> None:
    assert sampled["by_sensitivity"] < 0.6 * sampled["profile"]
    assert sampled["by_sensitivity"] < 0.75 * sampled["by_output_error"]
