"""Calibrate Text Encoder in a real ComfyUI: what it records, under which names, and how the recording is used.

The encoders are small and random but for their token embeddings (programs/small_encoders.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.cli import main
from calibrated_rounding.tools.comfyui import Host

WIDE = "wo$|wi_.$"
"""Layers of a T5 that stay wide when it is narrowed; they would take minutes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def qwen(host: Host, folder: Path) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.calibrate_encoder:calibrate_qwen", folder=folder)


@pytest.fixture(scope="module")
def pairs(host: Host, folder: Path) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.calibrate_encoder:calibrate_pairs", folder=folder, wide=WIDE)


def test_default_prompts_vary_in_length(qwen: dict[str, Any]) -> None:
    lengths = [len(line.split()) for line in qwen["prompts"]]
    assert 10 <= len(lengths) <= 20
    assert min(lengths) <= 3 and max(lengths) >= 40


def test_every_layer_records_every_token(qwen: dict[str, Any]) -> None:
    assert sorted(qwen["counts"]) == qwen["linear"]
    assert set(qwen["counts"].values()) == {qwen["tokens"]}


def test_calibration_leaves_encoder_unchanged(qwen: dict[str, Any]) -> None:
    assert qwen["hooks"] == 0
    assert qwen["unchanged"] and qwen["unchanged_after_quantizing"] and qwen["unchanged_at_end"]


def test_progress_and_report_are_shown(qwen: dict[str, Any]) -> None:
    assert qwen["progress"] == [len(qwen["prompts"])] * 2
    assert "14 layers calibrated" in qwen["report"] == qwen["shown"]


def test_rows_are_bounded_and_blank_lines_ignored(qwen: dict[str, Any]) -> None:
    assert qwen["fewer"] == 64
    assert qwen["blank_lines_ignored"]


def test_interrupt_between_prompts_removes_hooks(qwen: dict[str, Any]) -> None:
    assert qwen["interrupt"] == {"interrupted": True, "encoded": 2, "hooked": True, "hooks_left": 0}


def test_error_during_calibration_removes_hooks(qwen: dict[str, Any]) -> None:
    assert qwen["out_of_memory"] == {"raised": True, "hooked": True, "hooks_left": 0}


def test_calibrated_beats_nearest_on_unseen_prompts(qwen: dict[str, Any]) -> None:
    assert qwen["calibrated_error"] <= 0.75 * qwen["nearest_error"]


def test_every_layer_beats_nearest_on_held_out_rows(qwen: dict[str, Any]) -> None:
    assert len(qwen["layers"]) == 14
    pairs = [layer["errors"]["output_w8a16"] for layer in qwen["layers"]]
    assert all(pair["error"] < pair["nearest"] for pair in pairs)


def test_saved_calibration_loads_and_rounds_identically(qwen: dict[str, Any]) -> None:
    assert qwen["round_trip"]
    assert "nothing was rounded" in qwen["text_again"]
    assert "calibration only measures the error" in qwen["text_nearest"]


def test_calibration_provides_input_scales(qwen: dict[str, Any]) -> None:
    assert qwen["input_scales"] == 14


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("quantized", ("is quantized", "calibrate the float model")),
        ("empty", ("no prompt", "one per line")),
        ("no clip", ("no text encoder",)),
        ("no calibration", ("needs recorded inputs",)),
        ("other model", ("another model", "1 of 14 layers", "(model.layers.1.mlp.up_proj)")),
    ],
)
def test_refusals_are_one_sentence(qwen: dict[str, Any], case: str, words: tuple[str, ...]) -> None:
    error = qwen["errors"][case]
    assert all(word in error for word in words), error
    assert "\n" not in error


def test_unsupported_encoders_are_refused_or_skipped(pairs: dict[str, Any]) -> None:
    assert "clip_l cannot be quantized" in pairs["clip_l"]
    assert pairs["t5_recorded"] == pairs["t5_linear"]


def test_layers_of_pair_carry_encoder_names(pairs: dict[str, Any]) -> None:
    expected = {"t5xxl": pairs["t5_linear"], "llama": pairs["llama_linear"]}
    assert pairs["pair_recorded"] == sorted(f"{part}.{name}" for part, names in expected.items() for name in names)
    assert pairs["hooks"] == 0


@pytest.mark.parametrize(
    ("case", "encoders"),
    [("layers", {"encoder"}), ("pair_layers", {"t5xxl", "llama"}), ("t5_layers_of_pair", {"encoder"})],
)
def test_each_encoder_uses_own_statistics(pairs: dict[str, Any], case: str, encoders: set[str]) -> None:
    assert {layer["name"].split(".")[0] for layer in pairs[case]} == encoders
    assert all(layer["errors"]["output_w8a16"] is not None for layer in pairs[case])


def test_calibration_without_an_encoder_is_refused(pairs: dict[str, Any]) -> None:
    assert "another model" in pairs["encoder_missing"]


@pytest.mark.parametrize(("encoder", "fixture"), [("qwen", "qwen"), ("t5", "pairs")])
def test_command_line_matches_node_errors(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, encoder: str, fixture: str
) -> None:
    result, report = request.getfixturevalue(fixture), tmp_path / "report.json"
    command = ["-i", folder / f"{encoder}.safetensors", "-o", tmp_path / "q.safetensors", "--format", "float8_e4m3fn"]
    command += ["--exclude-layers", WIDE, "--calibration", result["saved"], "--report", report]
    command += ["--quiet", "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    errors = output_errors(json.loads(report.read_text())["layers"])
    assert errors == pytest.approx(output_errors(result["layers"]), rel=1e-5)
    assert errors.keys() <= Calibration.load(result["saved"]).keys()


def output_errors(layers: list[dict[str, Any]]) -> dict[str, float]:
    return {layer["name"]: layer["errors"]["output_w8a16"]["error"] for layer in layers}
