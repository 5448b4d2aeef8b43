"""The check route: what a quantize node would do with its settings, as the page asks before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, plan_file, quantize_file
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.notices import Level, notice
from calibrated_rounding.tools.comfyui import HostError, Server, example_model
from safetensors.torch import save_file

DIGITS = example_model("digits_wan.safetensors")
FILE = ["diffusion_models", DIGITS.name]
RUNS = notice("runs_here", format="int8_row", bits=8).to_dict()
"""Of the format that `ask` chooses."""
COMPUTED_ON_CPU = ("int8_tensor", "int8_row", "int8_convrot", "w6a8", "w4a8")


def saves(fmt: str, level: Level = "info") -> dict[str, Any]:
    """The notice about a format that the machine does not multiply in."""
    return notice("saves_memory_here", level, format=fmt).to_dict()


def ask(
    server: Server,
    linked: list[str] | None = None,
    calibration: bool = False,
    weight_only: bool = False,
    **values: Any,
) -> dict[str, Any]:
    """Ask the check route about a node.

    Args:
        server: The server.
        linked: Kind and name of the file that the loader at the node's input names.
        calibration: Whether a calibration is connected.
        weight_only: Whether the node takes text encoders.
        **values: Widgets of the node; ``file`` makes it the node Quantize.
    """
    widgets = {"format": "int8_row", "profile": "auto", "rounding": "nearest", "upgrade": "none"} | values
    body = {
        "values": widgets,
        "file": linked,
        "whole": "file" in values,
        "calibration": calibration,
        "weight_only": weight_only,
    }
    answer: dict[str, Any] = server.post("/calibrated_rounding/check", body)
    return answer


def kinds(answer: dict[str, Any]) -> set[tuple[str, str]]:
    return {(entry["kind"], entry["level"]) for entry in answer["notices"]}


def refusals(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in answer["notices"] if entry["kind"] == "refused"]


def test_check_plan_matches_run(server: Server) -> None:
    answer = ask(server, FILE, format="int8_convrot")
    planned = plan_file(DIGITS, Recipe(format="int8_convrot"))
    plan = answer["plan"]
    assert (plan["profile"], plan["layers"]) == ("wan", len(planned.layers))
    assert plan["kept_layers"] + plan["other_tensors"] == len(planned.kept)
    assert plan["formats"] == ["int8_convrot"]
    assert plan["bytes_before"] == pytest.approx(DIGITS.stat().st_size, rel=0.01)
    assert plan["bytes_after"] < plan["bytes_before"]
    assert answer["notices"] == [notice("runs_here", format="int8_convrot", bits=8).to_dict()]


def test_check_without_file_checks_format(server: Server) -> None:
    answer = ask(server, format="float8_e4m3fn")
    assert answer["plan"] is None
    assert answer["notices"] == [saves("float8_e4m3fn", "warning")]


def test_fp8_compute_is_said_to_round_inputs(fp8_server: Server) -> None:
    rounded = notice("inputs_rounded", format="float8_e4m3fn", device="CPU").to_dict()
    runs = notice("runs_here", format="float8_e4m3fn", bits=8).to_dict()
    assert ask(fp8_server, format="float8_e4m3fn")["notices"] == [runs, rounded]
    full = ask(fp8_server, format="float8_e4m3fn", full_precision_matrix_mult=True)
    assert full["notices"] == [saves("float8_e4m3fn")]


def test_wrong_profile_names_matching_profile(server: Server) -> None:
    (refused,) = refusals(ask(server, FILE, profile="flux"))
    assert refused["level"] == "warning"
    assert "'flux' does not describe this file, 'wan' does" in refused["values"]["text"]
    (refused,) = refusals(ask(server, file="/".join(FILE), profile="flux"))
    assert refused["level"] == "error"


def test_calibrated_rounding_requires_calibration(server: Server) -> None:
    rounding = {"rounding": "calibrated", "rounding.damping": 0.01, "rounding.passes": 1}
    assert ("no_calibration", "error") in kinds(ask(server, FILE, **rounding))
    assert ask(server, FILE, calibration=True, **rounding)["notices"] == [RUNS]


def test_invalid_settings_are_errors(server: Server) -> None:
    (refused,) = ask(server, FILE, exclude="(")["notices"]
    assert refused["level"] == "error" and "must be a regular expression" in refused["values"]["text"]


def test_layer_formats_are_checked(server: Server) -> None:
    answer = ask(server, FILE, overrides="ffn=float8_e4m3fn")
    assert set(answer["plan"]["formats"]) == {"int8_row", "float8_e4m3fn"}
    assert answer["notices"] == [RUNS, saves("float8_e4m3fn", "warning")]
    upgraded = ask(server, FILE, **{"upgrade": "mxfp8", "upgrade.max_error": 0.01})
    assert upgraded["notices"] == [RUNS, saves("mxfp8", "warning")]


def test_quantized_model_is_reported(server: Server, tmp_path: Path) -> None:
    quantize_file(DIGITS, tmp_path / "done.safetensors", Recipe(format="int8_row"))
    name = server.add_model("diffusion_models", tmp_path / "done.safetensors", "done_already.safetensors")
    (refused,) = refusals(ask(server, ["diffusion_models", name]))
    assert "already quantized" in refused["values"]["text"]
    assert ask(server, ["diffusion_models", name], dequantize=True)["plan"]["layers"] > 0


def test_checkpoint_plan_counts_diffusion_model_only(server: Server, tmp_path: Path) -> None:
    tensors = {f"double_blocks.{i}.img_attn.proj.weight": torch.zeros(64, 64) for i in range(2)}
    inside = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(inside | {"first_stage_model.big.weight": torch.zeros(512, 512)}, tmp_path / "all.safetensors")
    name = server.add_model("checkpoints", tmp_path / "all.safetensors")
    answer = ask(server, ["checkpoints", name])
    assert answer["plan"]["bytes_before"] == 2 * 64 * 64 * 4
    assert kinds(answer) == {("runs_here", "info"), ("not_recognised", "info")}


def test_auto_says_what_it_can_reach(server: Server) -> None:
    auto = {"file": "/".join(FILE), "format": "auto", "format.formats": "int8_row, w4a8", "format.target": "none"}
    plan = ask(server, **auto)["plan"]
    reachable = plan["reachable"]
    single = [plan_file(DIGITS, Recipe(format=name)).nbytes for name in ("int8_row", "w4a8")]
    assert (reachable["smallest"], reachable["largest"]) == (min(single), max(single))
    assert plan["bytes_after"] is None and plan["default_gb"] == pytest.approx(
        0.6 * plan["bytes_before"] / 1e9, abs=1e-3
    )
    target = "format.target.target_share"
    share = auto | {"format.target": "share", target: 0.62}
    within = ask(server, **share)
    assert within["plan"]["bytes_after"] == round(0.62 * within["plan"]["bytes_before"])
    assert ("refused", "error") not in kinds(within)
    texts = [entry["values"].get("text", "") for entry in ask(server, **share | {target: 0.3})["notices"]]
    assert any("cannot take it below" in text for text in texts)
    opened = ask(server, calibration=True, **share)["plan"]["reachable"]
    assert opened["smallest"] < reachable["smallest"], "with a calibration more layers may be quantized"


def test_settings_without_effect_are_noted(server: Server) -> None:
    answer = ask(server, FILE, exclude="nothing", rotation_group="64", bias_correction="measured", input_scale="mse")
    assert answer["notices"] == [
        RUNS,
        notice("pattern_unmatched", setting="exclude", pattern="nothing").to_dict(),
        notice("rotation_group_unused", option="rotation_group").to_dict(),
        notice("needs_calibration", option="bias_correction").to_dict(),
        notice("needs_calibration", option="input_scale").to_dict(),
    ]
    assert ask(server, FILE, calibration=True, bias_correction="measured", input_scale="mse")["notices"] == [RUNS]


def test_nan_and_no_layer_left_name_the_setting(server: Server) -> None:
    nan = {"upgrade": "mxfp8", "upgrade.max_error": float("nan")}
    for values, word in ((nan, "max_error is nan"), ({"exclude": "."}, "the settings exclude and overrides keep")):
        (refused,) = refusals(ask(server, file="/".join(FILE), **values))
        assert refused["level"] == "error" and word in refused["values"]["text"]


def test_malformed_requests_are_refused(server: Server) -> None:
    with pytest.raises(HostError, match="400"):
        server.post("/calibrated_rounding/check", {"values": {}})
    with pytest.raises(HostError, match="400"):
        ask(server, file="diffusion_models/../../server.log")
    assert ask(server, ["diffusion_models", "../../server.log"])["plan"] is None


def test_file_that_comfyui_would_not_load_is_refused(server: Server, tmp_path: Path) -> None:
    names = {
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.add_q_proj",
        "single_transformer_blocks.0.attn.to_q",
    }
    save_file({f"{name}.weight": torch.zeros(64, 64) for name in names}, tmp_path / "flux.safetensors")
    name = server.add_model("diffusion_models", tmp_path / "flux.safetensors", "flux_diffusers.safetensors")
    answer = ask(server, file=f"diffusion_models/{name}")
    assert answer["plan"] is None
    assert len(refusals(answer)) == 1
    assert "Flux.1 or a relative under the names of diffusers" in refusals(answer)[0]["values"]["text"]
    # Load Diffusion Model renames such tensors, so that the graph can quantize the model.
    assert ("refused", "error") not in kinds(ask(server, ["diffusion_models", name]))


def test_unknown_model_is_noted(server: Server, tmp_path: Path) -> None:
    save_file({"strange.linear.weight": torch.zeros(64, 64)}, tmp_path / "strange.safetensors")
    name = server.add_model("diffusion_models", tmp_path / "strange.safetensors", "strange.safetensors")
    expected = {("runs_here", "info"), ("not_known", "warning"), ("not_recognised", "info")}
    assert kinds(ask(server, file=f"diffusion_models/{name}")) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_told_to_run_or_to_save_memory(server: Server, known_formats: list[str], name: str) -> None:
    """On a CPU: ComfyUI multiplies INT8 there, and the pack's own kernels compute in float32."""
    chosen = ask(server, FILE, format=name)["notices"][0]
    if name not in known_formats:
        assert chosen["kind"] == "format_unknown_here"
    elif name in COMPUTED_ON_CPU:
        assert chosen == notice("runs_here", format=name, bits=8).to_dict()
    else:
        assert chosen == saves(name, "warning")
    (row,) = [row for row in server.get("/calibrated_rounding/formats")["formats"] if row["name"] == name]
    assert [entry["kind"] for entry in row["notices"]] == [chosen["kind"]], "the table says the same"
    assert row["bytes"] > 0


def test_text_encoder_is_told_that_all_formats_save_memory(server: Server) -> None:
    assert ask(server, weight_only=True)["notices"] == [saves("int8_row")]
    rows = server.get("/calibrated_rounding/formats", weight_only="1")["formats"]
    assert {row["notices"][0]["kind"] for row in rows} <= {"saves_memory_here", "format_unknown_here"}


def test_recommended_format_comes_with_how_it_runs(server: Server) -> None:
    first, second, *_ = ask(server, FILE, **{"format": "recommended", "format.preset": "balanced"})["notices"]
    assert first["kind"].startswith("recommended_") and second["kind"] == "runs_here"
    assert first["values"]["format"] == second["values"]["format"]


def test_quantize_to_a_size_is_told_of_its_formats(server: Server, known_formats: list[str]) -> None:
    notices = server.post("/calibrated_rounding/check", {"together": None})["notices"]
    runs = [entry["values"]["format"] for entry in notices if entry["kind"] == "runs_here"]
    assert runs == [", ".join(name for name in ("int8_convrot", "w6a8", "w4a8") if name in known_formats)]
    assert "encoder_saves_memory_here" in [entry["kind"] for entry in notices]
    named = {"format": "int8_row", "profile": "auto", "rounding": "nearest", "upgrade": "none"}
    (refused,) = server.post("/calibrated_rounding/check", {"together": named})["notices"]
    assert "leaves nothing to choose" in refused["values"]["text"]
