"""The bounded sample of each layer's input rows: uniform, shared, within its budget."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from calibrated_rounding.quant.calibration.collector import Collector
from calibrated_rounding.quant.calibration.reservoir import Reservoir


def test_everything_is_kept_while_it_fits() -> None:
    collector = Collector(rows=100)
    first, second = torch.randn(3, 10, 8), torch.randn(20, 8)
    collector.add("a", first)
    collector.add("a", second)
    statistics = collector.finish()["a"]
    every = torch.cat([first.view(-1, 8), second])
    assert statistics.count == 50
    assert statistics.absmax == float(every.abs().max())
    assert torch.allclose(statistics.mean, every.mean(0), atol=1e-6)
    assert statistics.rows is not None
    assert sorted(statistics.rows[:, 0].tolist()) == sorted(every[:, 0].bfloat16().tolist())


def test_sample_is_uniform_over_unequal_calls() -> None:
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


def test_budget_bounds_all_layers_uniformly() -> None:
    budget = 64 * 1024
    collector = Collector(rows=2048, budget=budget)
    for step in range(20):
        for layer in range(8):
            collector.add(f"layer{layer}", torch.full((64, 32), float(step)))
            assert collector.nbytes <= budget
    calibration = collector.finish()
    counts = {len(statistics.rows) for statistics in calibration.values() if statistics.rows is not None}
    assert counts == {128}
    steps = torch.cat([statistics.rows[:, 0] for statistics in calibration.values() if statistics.rows is not None])
    assert len(steps.unique()) == 20


def test_layers_with_one_input_share_a_sample() -> None:
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


def test_inputs_are_not_kept_alive() -> None:
    collector, inputs = Collector(), torch.randn(16, 8)
    collector.add("a", inputs)
    alive = weakref.ref(inputs)
    del inputs
    gc.collect()
    assert alive() is None
    # A new tensor in the place of the old one is not taken for it.
    collector.add("b", torch.randn(16, 8))
    assert set(collector.finish().samples) == {"a", "b"}


def test_rows_with_nan_are_left_out() -> None:
    inputs = torch.randn(16, 8)
    inputs[3, 2] = torch.nan
    collector = Collector()
    collector.add("a", inputs)
    statistics = collector.finish()["a"]
    assert statistics.count == 15
    assert statistics.rows is not None and bool(statistics.rows.isfinite().all())


def test_same_inputs_give_the_same_sample() -> None:
    def sample() -> torch.Tensor:
        reservoir = Reservoir.empty(4, 10, seed=3)
        for call in range(5):
            rows = torch.arange(80.0).view(20, 4) + 100 * call
            reservoir.add(rows, rows.sum(dim=0).numpy(), float(rows.max()))
        return reservoir.rows

    assert torch.equal(sample(), sample())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sample_is_the_rows_of_largest_keys(dtype: torch.dtype) -> None:
    """The same rows, in the same order, as sorting all rows by keys drawn from the seed."""
    reservoir, calls = Reservoir.empty(4, 50, seed=3), [3, 40, 200, 1, 900, 64]
    seen, generator = [], torch.Generator().manual_seed(0)
    for size in calls:
        rows = torch.randn(size, 4, generator=generator).to(dtype)
        reservoir.add(rows, rows.sum(dim=0, dtype=torch.float32).numpy(), float(rows.abs().amax()))
        seen.append(rows)
    keys = torch.Generator().manual_seed(3)
    order = torch.cat([torch.rand(size, generator=keys) for size in calls]).argsort(descending=True, stable=True)
    every = torch.cat(seen).to(torch.bfloat16)
    assert torch.equal(reservoir.rows, every[order[:50]])
    reservoir.shrink(20)
    assert torch.equal(reservoir.rows, every[order[:20]])
    assert reservoir.nbytes == 20 * 4 * 2


def test_finished_calibration_does_not_change() -> None:
    collector = Collector(rows=10)
    collector.add("a", torch.ones(10, 4))
    calibration = collector.finish()
    collector.add("a", torch.zeros(1000, 4))
    rows = calibration["a"].rows
    assert rows is not None and bool((rows == 1).all())
