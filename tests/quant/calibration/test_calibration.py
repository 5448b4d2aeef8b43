from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.calibration.file import Calibration
from calibrated_rounding.quant.calibration.sample import Collector, Reservoir
from calibrated_rounding.quant.calibration.statistics import fingerprint
from calibrated_rounding.quant.errors import CheckpointError
from safetensors.torch import save_file


def test_everything_is_kept_while_it_fits() -> None:
    collector = Collector(rows=100)
    first, second = torch.randn(3, 10, 8), torch.randn(20, 8)
    collector.add("a", first)
    collector.add("a", second)
    known = collector.finish()["a"]
    every = torch.cat([first.view(-1, 8), second])
    assert known.count == 50
    assert known.absmax == float(every.abs().max())
    assert torch.allclose(known.mean, every.mean(0), atol=1e-6)
    assert known.rows is not None
    assert sorted(known.rows[:, 0].tolist()) == sorted(every[:, 0].bfloat16().tolist())


def test_sample_is_uniform_over_calls_of_different_sizes() -> None:
    """Each call's share of the sample is its share of the rows, to within five standard deviations."""
    collector = Collector(rows=2000)
    sizes = [100, 5000, 20, 3000, 9000, 1]
    for call, size in enumerate(sizes):
        collector.add("a", torch.full((size, 4), float(call)))
    rows = collector.finish()["a"].rows
    assert rows is not None and len(rows) == 2000
    for call, size in enumerate(sizes):
        share = size / sum(sizes)
        assert abs(int((rows[:, 0] == call).sum()) - 2000 * share) <= 5 * (2000 * share * (1 - share)) ** 0.5 + 1


def test_budget_bounds_all_layers_and_keeps_the_sample_uniform() -> None:
    budget = 64 * 1024
    collector = Collector(rows=2048, budget=budget)
    for step in range(20):
        for layer in range(8):
            collector.add(f"layer{layer}", torch.full((64, 32), float(step)))
            assert collector.nbytes <= budget
    calibration = collector.finish()
    counts = {len(known.rows) for known in calibration.values() if known.rows is not None}
    assert counts == {128}
    steps = torch.cat([known.rows[:, 0] for known in calibration.values() if known.rows is not None])
    assert len(steps.unique()) == 20


def test_layers_fed_the_same_tensor_share_a_sample_until_they_are_not() -> None:
    collector = Collector()
    for _ in range(2):
        x, y = torch.randn(16, 8), torch.randn(16, 8)
        for layer in ("q", "k", "v"):
            collector.add(layer, x)
        collector.add("o", y)
    calibration = collector.finish()
    assert set(calibration) == {"q", "k", "v", "o"}
    assert set(calibration.samples) == {"q", "o"}
    assert calibration["k"].rows is calibration["q"].rows
    assert calibration["q"].count == 32


def test_rows_with_nan_are_left_out() -> None:
    inputs = torch.randn(16, 8)
    inputs[3, 2] = torch.nan
    collector = Collector()
    collector.add("a", inputs)
    known = collector.finish()["a"]
    assert known.count == 15
    assert known.rows is not None and bool(known.rows.isfinite().all())


def test_same_inputs_same_sample() -> None:
    def sample() -> torch.Tensor:
        reservoir = Reservoir.empty(4, 10, seed=3)
        for call in range(5):
            reservoir.add(torch.arange(80.0).view(20, 4) + 100 * call)
        return reservoir.rows

    assert torch.equal(sample(), sample())


def test_file(tmp_path: Path) -> None:
    collector = Collector(rows=16)
    x = torch.randn(64, 8)
    for layer in ("q", "k"):
        collector.add(layer, x)
    weight = torch.randn(4, 8)
    calibration = collector.finish({"q": fingerprint(weight)})
    calibration.save(tmp_path / "c.safetensors")
    loaded = Calibration.load(tmp_path / "c.safetensors")
    assert set(loaded) == set(calibration)
    for layer in loaded:
        ours, theirs = calibration[layer], loaded[layer]
        assert (ours.absmax, ours.count) == (theirs.absmax, theirs.count)
        assert torch.equal(ours.rows, theirs.rows) and torch.equal(ours.mean, theirs.mean)
    assert loaded["q"].fingerprint == fingerprint(weight)
    assert loaded["k"].fingerprint is None


def test_fingerprint_does_not_depend_on_the_dtype() -> None:
    weight = torch.randn(300, 70).bfloat16()
    assert fingerprint(weight) == fingerprint(weight.float())
    assert fingerprint(weight) != fingerprint(weight.view(70, 300))


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not a calibration"):
        Calibration.load(tmp_path / "other.safetensors")
