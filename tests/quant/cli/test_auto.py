"""--format auto on the command line, and the targets that imply it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run


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
