"""What the server says of a quantize node before it runs, as the page asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, plan_file, quantize_file
from calibrated_rounding.quant.notices import notice
from calibrated_rounding.tests.comfyui.harness import HostError, Server, example_model
from safetensors.torch import save_file

DIGITS = example_model("digits_wan.safetensors")
FILE = ["diffusion_models", DIGITS.name]


def ask(server: Server, linked: list[str] | None = None, calibration: bool = False, **values: Any) -> dict[str, Any]:
    """linked: the file that a loader at the node's input names; a value ``file`` is Quantize File's own."""
    asked = {"format": "int8_row", "profile": "auto", "rounding": "nearest", "upgrade": "none"} | values
    body = {"values": asked, "file": linked, "whole": "file" in values, "calibration": calibration}
    answer: dict[str, Any] = server.post("/calibrated_rounding/check", body)
    return answer


def kinds(answer: dict[str, Any]) -> set[tuple[str, str]]:
    return {(entry["kind"], entry["level"]) for entry in answer["notices"]}


def test_the_plan_is_what_the_run_would_do(server: Server) -> None:
    answer = ask(server, FILE, format="int8_convrot")
    planned = plan_file(DIGITS, Recipe(format="int8_convrot"))
    plan = answer["plan"]
    assert (plan["profile"], plan["layers"]) == ("wan", len(planned.layers))
    assert plan["kept_layers"] + plan["other_tensors"] == len(planned.kept)
    assert plan["formats"] == ["int8_convrot"]
    assert plan["bytes_before"] == pytest.approx(DIGITS.stat().st_size, rel=0.01)
    assert plan["bytes_after"] < plan["bytes_before"]
    assert answer["notices"] == []


def test_without_a_file_only_the_format_is_checked(server: Server) -> None:
    answer = ask(server, format="float8_e4m3fn")
    assert answer["plan"] is None
    assert answer["notices"] == [notice("emulated", format="float8_e4m3fn", device="CPU").to_dict()]


def test_a_profile_that_does_not_match_is_told_with_the_one_that_does(server: Server) -> None:
    (refused,) = ask(server, FILE, profile="flux")["notices"]
    assert refused["level"] == "warning"
    assert "'flux' does not describe this file, 'wan' does" in refused["values"]["text"]
    (refused,) = ask(server, file="/".join(FILE), profile="flux")["notices"]
    assert refused["level"] == "error"


def test_calibrated_rounding_asks_for_a_calibration(server: Server) -> None:
    chosen = {"rounding": "calibrated", "rounding.damping": 0.01, "rounding.passes": 1}
    assert ("no_calibration", "error") in kinds(ask(server, FILE, **chosen))
    assert kinds(ask(server, FILE, calibration=True, **chosen)) == set()


def test_settings_that_no_run_would_take_are_told(server: Server) -> None:
    (refused,) = ask(server, FILE, exclude="(")["notices"]
    assert refused["level"] == "error" and "must be a regular expression" in refused["values"]["text"]


def test_the_formats_of_single_layers_count(server: Server) -> None:
    answer = ask(server, FILE, overrides="ffn=float8_e4m3fn")
    assert set(answer["plan"]["formats"]) == {"int8_row", "float8_e4m3fn"}
    assert [emulated["values"]["format"] for emulated in answer["notices"]] == ["float8_e4m3fn"]
    upgraded = ask(server, FILE, **{"upgrade": "mxfp8", "upgrade.max_error": 0.01})
    assert [emulated["values"]["format"] for emulated in upgraded["notices"]] == ["mxfp8"]


def test_a_model_that_is_quantized_already_is_told(server: Server, tmp_path: Path) -> None:
    quantize_file(DIGITS, tmp_path / "done.safetensors", Recipe(format="int8_row"))
    name = server.add_model("diffusion_models", tmp_path / "done.safetensors", "done_already.safetensors")
    (refused,) = ask(server, ["diffusion_models", name])["notices"]
    assert "already quantized" in refused["values"]["text"]
    assert ask(server, ["diffusion_models", name], dequantize=True)["plan"]["layers"] > 0


def test_of_a_checkpoint_only_the_diffusion_model_counts(server: Server, tmp_path: Path) -> None:
    tensors = {f"double_blocks.{i}.img_attn.proj.weight": torch.zeros(64, 64) for i in range(2)}
    inside = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(inside | {"first_stage_model.big.weight": torch.zeros(512, 512)}, tmp_path / "all.safetensors")
    name = server.add_model("checkpoints", tmp_path / "all.safetensors")
    answer = ask(server, ["checkpoints", name])
    assert answer["plan"]["bytes_before"] == 2 * 64 * 64 * 4
    assert kinds(answer) == {("not_recognised", "info")}


def test_what_no_node_asks_is_refused(server: Server) -> None:
    with pytest.raises(HostError, match="400"):
        server.post("/calibrated_rounding/check", {"values": {}})
    with pytest.raises(HostError, match="400"):
        ask(server, file="diffusion_models/../../server.log")
    assert ask(server, ["diffusion_models", "../../server.log"])["plan"] is None
