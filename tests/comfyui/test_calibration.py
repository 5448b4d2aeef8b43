"""Calibration in a real ComfyUI: what any sampling records, what it leaves behind, and how the recording is used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant.cli import main
from calibrated_rounding.tools.comfyui import Host, HostError, Server, example_model
from calibrated_rounding.tools.comfyui.graphs import model_loader, pack_node, stock_node
from calibrated_rounding.tools.comfyui.workflows import table as read_table
from safetensors import safe_open
from safetensors.torch import load_file, save_file

STEPS, BATCH, TOKENS = 4, 2 * 2, 16
"""Of `sample_briefly`: two digits, each with and without condition, in patches of 2 x 2 of a latent of 8 x 8."""


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return load_file(example_model("digits_conditioning.safetensors"))["conditioning"]


@pytest.fixture(scope="module")
def inputs(table: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("output")
    return {"source": example_model("digits_wan.safetensors"), "table": table, "output": output}


@pytest.fixture(scope="module")
def recorded(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.calibrate_model:record_samplings", **inputs)


def test_recording_leaves_latents_unchanged(recorded: dict[str, Any]) -> None:
    assert recorded["equal"]
    assert recorded["equal_through_clones"]
    assert recorded["equal_without_recorder"]


def test_run_leaves_no_hook(recorded: dict[str, Any]) -> None:
    assert recorded["hooks_left"] == 0


@pytest.mark.parametrize("end", ["error", "interrupt"])
def test_failed_run_leaves_no_hook(recorded: dict[str, Any], end: str) -> None:
    assert recorded[end] == {"hooked": True, "raised": True, "hooks_left": 0}


def test_every_linear_layer_records_every_step(recorded: dict[str, Any], table: torch.Tensor) -> None:
    assert set(recorded["counts"]) == set(recorded["linear_layers"])
    tokens = {"self_attn": TOKENS, "cross_attn.q": TOKENS, "cross_attn.o": TOKENS, "cross_attn.k": table.shape[1]}
    for layer, count in recorded["counts"].items():
        number = next((number for part, number in tokens.items() if f".{part}" in layer), None)
        if number is not None:
            assert count == STEPS * BATCH * number, layer
    assert all(maximum > 0 for maximum in recorded["absmax"].values())


def test_layers_with_same_input_share_sample(recorded: dict[str, Any]) -> None:
    leaders = recorded["leaders"]
    for block in ("blocks.0", "blocks.1"):
        assert {leaders[f"{block}.self_attn.{name}"] for name in "qkv"} == {f"{block}.self_attn.q"}
        assert leaders[f"{block}.self_attn.o"] == f"{block}.self_attn.o"
        assert leaders[f"{block}.cross_attn.v"] == f"{block}.cross_attn.k"


def test_runs_accumulate_without_changing_earlier_calibrations(recorded: dict[str, Any]) -> None:
    assert recorded["counts_twice"] == {layer: 2 * count for layer, count in recorded["counts"].items()}
    assert recorded["first_unchanged"]
    assert not recorded["digest_once_equal"]
    assert recorded["digest_twice_equal"]


def test_budget_bounds_recorded_rows(recorded: dict[str, Any]) -> None:
    assert 0 < recorded["small_bytes"] <= 0.0001 * 2**30
    assert max(recorded["small_rows"]) < 64


def test_quantized_model_is_not_recorded(recorded: dict[str, Any]) -> None:
    assert "is quantized" in recorded["quantized_error"]
    assert "calibrate the float model" in recorded["quantized_error"]
    assert "\n" not in recorded["quantized_error"]


def test_empty_recording_names_the_way_out(recorded: dict[str, Any]) -> None:
    assert "Nothing was recorded" in recorded["empty_error"]


def test_quantized_copy_stops_recording(recorded: dict[str, Any]) -> None:
    assert not recorded["quantized_copy_records"]


def test_compiled_model_is_recorded_completely(recorded: dict[str, Any]) -> None:
    assert recorded["compiled_counts"] == recorded["counts"]


NEEDED = {
    ("float8_e4m3fn", "sampled"): 8.0,
    ("float8_e4m3fn", "weights"): 8.0,
    ("int8_convrot", "sampled"): 1.0,
    ("int8_convrot", "weights"): 6.0,
}
"""By how many decibels calibrated latents must be closer to the float model's than nearest's: as ComfyUI samples, and
with the rounded weights alone. INT8 layers quantize their inputs too, which no rounding of weights undoes: with exact
weights these latents would gain 1.7 dB."""
FORMATS = tuple(dict.fromkeys(fmt for fmt, _ in NEEDED))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example model with one weight changed."""
    tensors = load_file(example_model("digits_wan.safetensors"))
    tensors["blocks.1.ffn.0.weight"] = tensors["blocks.1.ffn.0.weight"].flip(0).contiguous()
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    with safe_open(example_model("digits_wan.safetensors"), "pt") as file:
        save_file(tensors, path, file.metadata())
    return path


@pytest.fixture(scope="module")
def quantized(host: Host, inputs: dict[str, Any], other: Path) -> dict[str, Any]:
    function = "tests.comfyui.programs.calibrate_model:quantize_with_calibration"
    return host.call(function, **inputs, formats=FORMATS, other=other)


@pytest.mark.parametrize(("fmt", "kind"), NEEDED)
def test_calibrated_beats_nearest_at_unseen_seeds(quantized: dict[str, Any], fmt: str, kind: str) -> None:
    nearest, calibrated = (quantized["formats"][fmt][method][kind] for method in ("nearest", "calibrated"))
    assert 20 * math.log10(nearest / calibrated) >= NEEDED[fmt, kind]


def layers_of(quantized: dict[str, Any], fmt: str) -> list[dict[str, Any]]:
    """The layers that the calibrated node shows."""
    return read_table(quantized["formats"][fmt]["layers"])


@pytest.mark.parametrize("fmt", FORMATS)
def test_no_layer_is_worse_than_nearest(quantized: dict[str, Any], fmt: str) -> None:
    pairs = [layer["errors"]["output_w8a16"] for layer in layers_of(quantized, fmt)]
    assert all(pair["error"] <= pair["nearest"] for pair in pairs)


def test_saved_calibration_is_listed_and_loads(quantized: dict[str, Any]) -> None:
    path = Path(quantized["path"])
    assert path.parent.name == "calibrations"
    assert quantized["listed"] == [path.name]
    assert quantized["round_trip"]


def test_report_states_layers_and_size(quantized: dict[str, Any]) -> None:
    assert "layers calibrated" in quantized["report"]
    assert "MB" in quantized["report"]


def test_results_are_cached_per_calibration(quantized: dict[str, Any]) -> None:
    assert "nothing was rounded" in quantized["text_again"]
    assert "nothing was rounded" not in quantized["text_other_calibration"]
    assert "calibration only measures the error" in quantized["text_nearest"]


def test_statistics_provide_input_scales_and_biases(quantized: dict[str, Any]) -> None:
    assert quantized["input_scales"] == len(layers_of(quantized, "float8_e4m3fn"))
    assert quantized["biases_corrected"]


def test_calibration_of_other_model_is_refused(quantized: dict[str, Any]) -> None:
    error = quantized["other_error"]
    assert "1 of 19 layers" in error and "(blocks.1.ffn.0)" in error
    assert "another model" in error
    assert "\n" not in error


def test_calibrated_rounding_requires_calibration(quantized: dict[str, Any]) -> None:
    assert "needs recorded inputs" in quantized["missing_error"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_command_line_matches_node_errors(quantized: dict[str, Any], fmt: str, tmp_path: Path) -> None:
    command = ["-i", example_model("digits_wan.safetensors"), "-o", tmp_path / "q.safetensors", "--format", fmt]
    command += ["--calibration", quantized["path"], "--report", tmp_path / "report.json", "--quiet", "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    errors, node_errors = (
        {layer["name"]: layer["errors"]["output_w8a16"]["error"] for layer in layers}
        for layers in (report["layers"], layers_of(quantized, fmt))
    )
    assert errors == pytest.approx(node_errors, rel=1e-5)


def recording_graph(seed: int) -> dict[str, Any]:
    """A workflow that records a sampling, collects and saves the calibration, and shows its report."""
    table = "digits_conditioning.safetensors"
    conditions = {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    settings = {"seed": seed, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        "loader": model_loader("digits_wan.safetensors"),
        "record": pack_node("RecordCalibration", model=["loader", 0], rows=2048, budget_gib=1.0),
        "positive": pack_node("LoadClassConditioning", table=table, class_index=3),
        "negative": pack_node("LoadClassConditioning", table=table, class_index=10),
        "latent": stock_node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1),
        "sampler": stock_node("KSampler", model=["record", 0], **conditions, **settings),
        "collect": pack_node("CollectCalibration", recorder=["record", 1], after=["sampler", 0]),
        "save": pack_node("SaveCalibration", calibration=["collect", 0], name="graph"),
        "report": stock_node("PreviewAny", source=["collect", 1]),
    }


def test_recording_grows_with_new_seeds_only(server: Server) -> None:
    reports = [server.execute(recording_graph(seed))["report"]["text"][0] for seed in (1, 1, 2)]
    rows = [int(report.split("drawn from ")[1].split()[0]) for report in reports]
    assert rows == [rows[0], rows[0], 2 * rows[0]]
    assert server.object_info("CalibratedRoundingLoadCalibration")["input"]["required"]["file"][1]["options"]


def test_graph_refuses_calibrated_rounding_without_calibration(server: Server) -> None:
    rounding = {"rounding": "calibrated", "rounding.damping": 0.0, "rounding.passes": 1}
    graph = {
        "loader": model_loader("digits_wan.safetensors"),
        "quantize": pack_node("QuantizeModel", model=["loader", 0], format="int8_row", profile="auto", **rounding),
        "report": stock_node("PreviewAny", source=["quantize", 1]),
    }
    with pytest.raises(HostError, match="needs recorded inputs; give a calibration"):
        server.execute(graph)
