"""--format auto on the command line, and the targets that imply it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.device import FOUR_BITS, lacks_four_bits

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
    run: Run, tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capability: int
) -> None:
    """The layers are still computed on the CPU, whatever the name of the device."""
    monkeypatch.setattr(convert, "choose_device", lambda name: "cpu")
    monkeypatch.setattr(convert, "lacks_four_bits", lambda device: capability < FOUR_BITS)
    ran = run("-i", tiny_path, "--format", "auto", "--formats", "int8_row,nvfp4")
    assert ran.code == 0, ran.err
    assert ("Left out of auto: nvfp4" in ran.err) == (capability < 10)


def test_devices_before_blackwell_lack_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for major in (8, 9, 10, 12):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
        assert lacks_four_bits("cuda:0") == (major < 10)
    assert not lacks_four_bits("cpu")


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
