"""The calibration of a model: its parts, its text, its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.collector import Collector
from calibrated_rounding.quant.calibration.file import DIGEST_KEY
from calibrated_rounding.quant.calibration.statistics import fingerprint
from calibrated_rounding.quant.errors import CheckpointError
from calibrated_rounding.quant.notices import notice
from safetensors import safe_open
from safetensors.torch import load_file, save_file

WEIGHT = torch.arange(32.0).view(4, 8)


@pytest.fixture
def calibration() -> Calibration:
    collector = Collector(rows=16)
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    for layer in ("net.q", "net.k"):
        collector.add(layer, inputs)
    known = collector.finish({"net.q": fingerprint(WEIGHT)})
    return replace(
        known,
        sensitivities={"net.k": 0.5},
        unrecorded=("net.idle", "other.idle"),
        patched_fingerprints={"net.q": fingerprint(WEIGHT + 1)},
    )


def test_file_roundtrip(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "c.safetensors")
    loaded = Calibration.load(tmp_path / "c.safetensors")
    assert (loaded.digest, loaded.unrecorded) == (calibration.digest, calibration.unrecorded)
    assert list(loaded) == sorted(calibration)
    for layer in loaded:
        ours, theirs = calibration[layer], loaded[layer]
        assert (ours.absmax, ours.count, ours.sensitivity) == (theirs.absmax, theirs.count, theirs.sensitivity)
        assert torch.equal(ours.rows, theirs.rows) and torch.equal(ours.mean, theirs.mean)
    assert loaded["net.q"].fingerprint == fingerprint(WEIGHT)
    assert loaded["net.q"].patched_fingerprint == fingerprint(WEIGHT + 1)
    assert (loaded["net.k"].fingerprint, loaded["net.k"].patched_fingerprint) == (None, None)


def test_files_without_new_fields_load(calibration: Calibration, tmp_path: Path) -> None:
    """The first versions wrote no digest, no layers that were not recorded and no patches."""
    first = replace(calibration, unrecorded=(), patched_fingerprints={})
    path = tmp_path / "c.safetensors"
    first.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert "unrecorded" not in str(metadata) and "patched" not in str(metadata)
    save_file(load_file(path), path, {key: text for key, text in metadata.items() if key != DIGEST_KEY})
    assert Calibration.load(path).digest == first.digest


def test_part_of_the_layers_is_renamed(calibration: Calibration) -> None:
    part = calibration.under("net.")
    assert set(part) == {"q", "k"}
    assert (part["q"].fingerprint, part["k"].sensitivity) == (fingerprint(WEIGHT), 0.5)
    assert part["q"].patched_fingerprint == fingerprint(WEIGHT + 1)
    assert part.unrecorded == ("idle",)
    assert not calibration.under("elsewhere.")


def test_summary_names_missing_layers(calibration: Calibration) -> None:
    text = calibration.summary()
    assert "2 layers calibrated, in 1 samples of 16 to 16 rows, drawn from 64 rows" in text
    assert "Not recorded: 2 layers" in text and "(net.idle, other.idle)" in text
    assert "Sensitivity measured of 1 of 2 layers; not of net.q" in text
    assert "Not recorded" not in replace(calibration, unrecorded=()).summary()


def test_thin_calibration_names_rows_needed(calibration: Calibration) -> None:
    assert calibration.warnings() == []
    samples = {name: replace(sample, rows=torch.zeros(6, 4)) for name, sample in calibration.samples.items()}
    thin = replace(calibration, samples=samples)
    assert thin.warnings() == [notice("calibration_thin", layers=2, total=2, rows=6, needed=8)]
    assert "too thin: 2 of 2 layers have fewer than 8 rows (6 at the fewest)" in thin.summary()


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not a calibration"):
        Calibration.load(tmp_path / "other.safetensors")
