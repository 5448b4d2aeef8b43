"""--format auto on the command line, and the targets that imply it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.planning.machine import Machine, list_products

from .conftest import Run

convert = importlib.import_module("calibrated_rounding.quant.cli.convert")
"""The module; the package has the function under its name."""


@pytest.mark.parametrize(
    "words", [("--target_share", 0.7), ("--target-error", 0.02), ("--format", "auto", "--formats", "int8_row,fp8")]
)
def test_the_formats_of_layers_are_chosen(run: Run, tiny_path: Path, tmp_path: Path, words: tuple[object, ...]) -> None:
    report = tmp_path / "report.json"
    ran = run("-i", tiny_path, *words, "--report", report)
    assert ran.code == 0, ran.err
    assert tiny_path.with_name("tiny_auto.safetensors").exists()
    told = json.loads(report.read_text())
    assert told["recipe"]["format"] == "auto"
    assert told["precision"]["chosen"]["nbytes"] == told["totals"]["bytes_after"]


@pytest.mark.parametrize("capability", [8, 9, 10, 12])
def test_nvfp4_is_left_out_where_the_card_lacks_it(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], capability: int
) -> None:
    machine = Machine(title="a card", computes=list_products((capability, 0)))
    monkeypatch.setattr(convert, "detect_machine", lambda device: machine)
    recipe = Recipe(format="auto", formats=("int8_row", "nvfp4"))
    left = convert._leave_out_unusable({}, recipe, str(tiny_path), "cuda:0")
    assert left.formats == (("int8_row", "nvfp4") if capability >= 10 else ("int8_row",))
    assert ("Left out of auto: nvfp4" in capsys.readouterr().err) == (capability < 10)
    assert convert._leave_out_unusable({}, recipe, str(tiny_path), "cpu") == recipe


def test_rotation_groups_can_be_chosen_too(run: Run, tiny_path: Path) -> None:
    assert run("-i", tiny_path, "--convrot", "--convrot_group_size", "auto").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target_gb", 1, "--int8"), "contradicts"),
        (("--target_share", 0.1), "cannot take it below"),
        (
            ("--format", "int8_row", "--target_share", 0.5),
            "--format contradicts --target-share: format would be int8_row and auto",
        ),
        (("--format", "auto", "--formats", "int9"), "formats[0] is 'int9'; choose one of float8_e4m3fn"),
    ],
)
def test_impossible_settings_give_one_line(run: Run, tiny_path: Path, words: tuple[object, ...], message: str) -> None:
    ran = run("-i", tiny_path, *words)
    assert ran.code == 1
    assert message in ran.error


def test_dry_run_says_what_auto_can_reach(run: Run, digits_path: Path) -> None:
    words = ("-i", digits_path, "--dry-run", "--format", "auto", "--formats", "int8_row,w4a8")
    free = run(*words).out.splitlines()
    assert free[1].split()[2:5] == ["auto", "0.13", "-"]
    assert "wan: auto chooses the formats of 19 layers in the run, by measurement." in free
    assert "From 4.45 MB it can reach 2.40 to 3.03 MB." in free
    limited = run(*words, "--target_share", 0.6).out
    assert "it can reach 2.40 to 4.45 MB; the target is at most 2.67 MB." in limited
    refused = run(*words, "--target_share", 0.3)
    assert refused.code == 1 and "cannot take it below" in refused.err


def test_unused_settings_and_patterns_are_said(run: Run, tiny_path: Path) -> None:
    ran = run(
        "-i", tiny_path, "--exclude", "nothing", "--input-scale", "mse", "--rotation-group", 64, "--format", "int8_row"
    )
    assert ran.code == 0
    assert "note: --input-scale has no effect without a calibration." in ran.err
    assert "note: --rotation-group has no effect" in ran.err
    assert "exclude: nothing matches no layer of this model" in ran.out


def test_nan_is_refused(run: Run, tiny_path: Path) -> None:
    ran = run("-i", tiny_path, "--target_error", "nan")
    assert ran.code == 1 and "target_error is nan; it must be a number above 0" in ran.err
