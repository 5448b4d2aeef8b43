"""The check route: what a quantize node would do with its settings, as the page asks before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, plan_file, quantize_file
from calibrated_rounding.quant.notices import notice
from calibrated_rounding.tools.comfyui import HostError, Server, example_model
from safetensors.torch import save_file

DIGITS = example_model("digits_wan.safetensors")
FILE = ["diffusion_models", DIGITS.name]


def ask(server: Server, linked: list[str] | None = None, calibration: bool = False, **values: Any) -> dict[str, Any]:
    """Ask the check route about a node.

    Args:
        server: The server.
        linked: Kind and name of the file that the loader at the node's input names.
        calibration: Whether a calibration is connected.
        **values: Widgets of the node; ``file`` makes it the node Quantize.
    """
    widgets = {"format": "int8_row", "profile": "auto", "rounding": "nearest", "upgrade": "none"} | values
    body = {"values": widgets, "file": linked, "whole": "file" in values, "calibration": calibration}
    answer: dict[str, Any] = server.post("/calibrated_rounding/check", body)
    return answer


def kinds(answer: dict[str, Any]) -> set[tuple[str, str]]:
    return {(entry["kind"], entry["level"]) for entry in answer["notices"]}


def test_check_plan_matches_run(server: Server) -> None:
    answer = ask(server, FILE, format="int8_convrot")
    planned = plan_file(DIGITS, Recipe(format="int8_convrot"))
    plan = answer["plan"]
    assert (plan["profile"], plan["layers"]) == ("wan", len(planned.layers))
    assert plan["kept_layers"] + plan["other_tensors"] == len(planned.kept)
    assert plan["formats"] == ["int8_convrot"]
    assert plan["bytes_before"] == pytest.approx(DIGITS.stat().st_size, rel=0.01)
    assert plan["bytes_after"] < plan["bytes_before"]
    assert answer["notices"] == []


def test_check_without_file_checks_format(server: Server) -> None:
    answer = ask(server, format="float8_e4m3fn")
    assert answer["plan"] is None
    assert answer["notices"] == [notice("emulated", format="float8_e4m3fn", device="CPU").to_dict()]


def test_fp8_compute_is_said_to_round_inputs(fp8_server: Server) -> None:
    rounded = notice("inputs_rounded", format="float8_e4m3fn", device="CPU").to_dict()
    assert ask(fp8_server, format="float8_e4m3fn")["notices"] == [rounded]
    assert ask(fp8_server, format="float8_e4m3fn", full_precision_matrix_mult=True)["notices"] == []


def test_wrong_profile_names_matching_profile(server: Server) -> None:
    (refused,) = ask(server, FILE, profile="flux")["notices"]
    assert refused["level"] == "warning"
    assert "'flux' does not describe this file, 'wan' does" in refused["values"]["text"]
    (refused,) = ask(server, file="/".join(FILE), profile="flux")["notices"]
    assert refused["level"] == "error"


def test_calibrated_rounding_requires_calibration(server: Server) -> None:
    rounding = {"rounding": "calibrated", "rounding.damping": 0.01, "rounding.passes": 1}
    assert ("no_calibration", "error") in kinds(ask(server, FILE, **rounding))
    assert kinds(ask(server, FILE, calibration=True, **rounding)) == set()


def test_invalid_settings_are_errors(server: Server) -> None:
    (refused,) = ask(server, FILE, exclude="(")["notices"]
    assert refused["level"] == "error" and "must be a regular expression" in refused["values"]["text"]


def test_layer_formats_are_checked(server: Server) -> None:
    answer = ask(server, FILE, overrides="ffn=float8_e4m3fn")
    assert set(answer["plan"]["formats"]) == {"int8_row", "float8_e4m3fn"}
    assert [emulated["values"]["format"] for emulated in answer["notices"]] == ["float8_e4m3fn"]
    upgraded = ask(server, FILE, **{"upgrade": "mxfp8", "upgrade.max_error": 0.01})
    assert [emulated["values"]["format"] for emulated in upgraded["notices"]] == ["mxfp8"]


def test_quantized_model_is_reported(server: Server, tmp_path: Path) -> None:
    quantize_file(DIGITS, tmp_path / "done.safetensors", Recipe(format="int8_row"))
    name = server.add_model("diffusion_models", tmp_path / "done.safetensors", "done_already.safetensors")
    (refused,) = ask(server, ["diffusion_models", name])["notices"]
    assert "already quantized" in refused["values"]["text"]
    assert ask(server, ["diffusion_models", name], dequantize=True)["plan"]["layers"] > 0


def test_checkpoint_plan_counts_diffusion_model_only(server: Server, tmp_path: Path) -> None:
    tensors = {f"double_blocks.{i}.img_attn.proj.weight": torch.zeros(64, 64) for i in range(2)}
    inside = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(inside | {"first_stage_model.big.weight": torch.zeros(512, 512)}, tmp_path / "all.safetensors")
    name = server.add_model("checkpoints", tmp_path / "all.safetensors")
    answer = ask(server, ["checkpoints", name])
    assert answer["plan"]["bytes_before"] == 2 * 64 * 64 * 4
    assert kinds(answer) == {("not_recognised", "info")}


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
        notice("pattern_unmatched", setting="exclude", pattern="nothing").to_dict(),
        notice("rotation_group_unused", option="rotation_group").to_dict(),
        notice("needs_calibration", option="bias_correction").to_dict(),
        notice("needs_calibration", option="input_scale").to_dict(),
    ]
    assert kinds(ask(server, FILE, calibration=True, bias_correction="measured", input_scale="mse")) == set()


def test_nan_and_no_layer_left_name_the_setting(server: Server) -> None:
    nan = {"upgrade": "mxfp8", "upgrade.max_error": float("nan")}
    for values, word in ((nan, "max_error is nan"), ({"exclude": "."}, "the settings exclude and overrides keep")):
        (refused,) = ask(server, file="/".join(FILE), **values)["notices"]
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
    assert kinds(answer) == {("refused", "error")}
    assert "Flux.1 or a relative under the names of diffusers" in answer["notices"][0]["values"]["text"]
    # Load Diffusion Model renames such tensors, so that the graph can quantize the model.
    assert ("refused", "error") not in kinds(ask(server, ["diffusion_models", name]))


def test_unknown_model_is_noted(server: Server, tmp_path: Path) -> None:
    save_file({"strange.linear.weight": torch.zeros(64, 64)}, tmp_path / "strange.safetensors")
    name = server.add_model("diffusion_models", tmp_path / "strange.safetensors", "strange.safetensors")
    assert kinds(ask(server, file=f"diffusion_models/{name}")) == {("not_known", "warning"), ("not_recognised", "info")}
