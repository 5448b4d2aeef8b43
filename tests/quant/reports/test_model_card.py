"""The text that goes with a shared file."""

from __future__ import annotations

from pathlib import Path

import torch
from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.quant.cli import main
from calibrated_rounding.quant.reports.inspection import inspect_file
from calibrated_rounding.quant.reports.model_card import write_model_card
from safetensors.torch import save_file


def test_card_says_what_how_needs_and_closeness(digits_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "digits_int8.safetensors"
    report = quantize_file(digits_path, path, Recipe(format="int8_convrot", scale="mse"))
    card = write_model_card(inspect_file(path), report)
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == ["# digits_int8.safetensors", "## How it was made", "## What it needs", "## How close it is"]
    for words in ("WAN 2.1 and 2.2, 19 layers quantized.", "`int8_convrot`", "- scale: `mse`", "ComfyUI 0.27"):
        assert words in card
    assert inspect_file(path).provenance.source_sha256 in card
    assert "weight error" in card and f"{report.totals.bytes_before / 1e6:.2f} MB before" in card


def test_card_claims_nothing_that_was_not_measured(digits_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    quantize_file(digits_path, path)
    card = write_model_card(inspect_file(path))
    assert "Not measured for this card." in card and "error" not in card
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    assert "The file does not say how it was made." in write_model_card(inspect_file(tmp_path / "foreign.safetensors"))


def test_command_line_writes_and_prints_the_card(digits_path: Path, tmp_path: Path, capsys) -> None:
    target, card = tmp_path / "q.safetensors", tmp_path / "q.md"
    assert main(["-i", str(digits_path), "-o", str(target), "--model-card", str(card), "--quiet"]) == 0
    assert card.read_text().startswith("# q.safetensors") and "weight error" in card.read_text()
    assert main(["inspect", str(target), "--model-card"]) == 0
    assert "## What it needs" in capsys.readouterr().out
    assert main(["-i", str(digits_path), "-o", str(target), "--model-card", "card.txt", "--overwrite"]) == 1
    assert "must end in .md" in capsys.readouterr().err
    assert main(["-i", str(digits_path), "--dry-run", "--model-card", str(card)]) == 1
