"""The text that goes with a shared file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import InputStatistics, Recipe, quantize_file
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.cli import main
from calibrated_rounding.quant.layer.layer_errors import PAIRS, ErrorPair
from calibrated_rounding.quant.reports.inspection import inspect_file
from calibrated_rounding.quant.reports.measurement import Measurement
from calibrated_rounding.quant.reports.model_card import write_model_card
from calibrated_rounding.quant.reports.provenance import PROVENANCE_KEY, Provenance
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def test_card_says_what_how_needs_and_closeness(digits_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "digits_int8.safetensors"
    report = quantize_file(digits_path, path, Recipe(format="int8_convrot", scale="mse"))
    card = write_model_card(inspect_file(path))
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == ["# digits_int8.safetensors", "## How it was made", "## What it needs", "## How close it is"]
    for words in ("WAN 2.1 and 2.2, 19 layers quantized.", "`int8_convrot`", "- scale: `mse`", "ComfyUI 0.27"):
        assert words in card
    assert inspect_file(path).provenance.source_sha256 in card
    assert "weight error" in card and f"{report.totals.bytes_before / 1e6:.2f} MB before" in card


def test_card_claims_nothing_that_was_not_measured(digits_path: Path, tmp_path: Path) -> None:
    path, plain = tmp_path / "q.safetensors", tmp_path / "plain.safetensors"
    quantize_file(digits_path, path)
    with safe_open(path, "pt") as file:
        made = json.loads(file.metadata()[PROVENANCE_KEY])
    assert made.pop("measurement")["errors"].keys() == {"weight"}, "without a calibration no output error is known"
    save_file(load_file(path), plain, {PROVENANCE_KEY: json.dumps(made)})
    card = write_model_card(inspect_file(plain))
    assert "The file does not say how close it is." in card and "error" not in card
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


def test_card_tells_output_error_and_its_calibration(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, mixed = (torch.randn(64, 64, generator=generator) for _ in range(2))
    rows = torch.randn(512, 64, generator=generator) @ mixed
    save_file({"a.weight": weight}, tmp_path / "float.safetensors")
    sample = InputStatistics(rows=rows, mean=rows.mean(0), count=512)
    calibration = Calibration(samples={"a": sample}, shared={"a": "a"}, fingerprints={})
    path = tmp_path / "q.safetensors"
    recipe = Recipe(format="w4a8", rounding="calibrated")
    report = quantize_file(tmp_path / "float.safetensors", path, recipe, statistics=calibration)
    card = write_model_card(inspect_file(path))
    pair = report.totals.output_w8a8
    assert pair is not None and f"output error (W8A8) {pair.error:.2%}" in card and f"({pair.nearest:.2%})" in card
    assert f"SHA-256 `{calibration.digest}`" in card
    assert "it is no model that ComfyUI is known to load." in card, "warnings of the run are in the card"


@pytest.mark.parametrize(
    "damage",
    [{"bytes_before": -1}, {"errors": {"weight": [1]}}, {"errors": {"weight": [1, "1e999"]}}, {"fell_back": "2"}],
)
def test_damaged_measurement_is_left_out(damage: dict[str, object]) -> None:
    good = Measurement(bytes_before=2, bytes_after=1, errors={"weight": ErrorPair(0.01, 0.02)}).to_dict()
    assert Measurement.from_dict(good) is not None
    fields = json.dumps({"version": "1", "recipe": {}, "measurement": good | damage})
    provenance = Provenance.from_metadata({PROVENANCE_KEY: fields})
    assert provenance is not None and provenance.measurement is None


def test_placeholder_is_as_long_as_any_measurement() -> None:
    extremes = (1e-300, 1.234e-5, 9.999e15, 123456.0, 0.0)
    longest = len(json.dumps(Measurement.placeholder(None, ()).to_dict()))
    for error in extremes:
        pairs = dict.fromkeys(PAIRS, ErrorPair(error, error))
        figures = Measurement(bytes_before=2**62, bytes_after=2**62, errors=pairs, fell_back=10**9)
        assert len(json.dumps(figures.to_dict())) <= longest
