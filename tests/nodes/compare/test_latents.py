"""The figures by which latents are compared."""

from __future__ import annotations

import math

import pytest
import torch
from calibrated_rounding.nodes.compare.latents import (
    Closeness,
    LatentComparison,
    Trace,
    compare_traces,
    measure_closeness,
)
from hypothesis import given
from hypothesis import strategies as st

seeds = st.integers(0, 2**32)


def random(seed: int, shape: tuple[int, ...] = (2, 4, 8, 8)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trace(seed: int, steps: int = 3) -> Trace:
    return Trace([random(seed + step) for step in range(steps)], random(seed - 1))


def test_the_figures_by_hand() -> None:
    wanted, made = torch.tensor([0.0, 3.0, 4.0, 0.0]), torch.tensor([0.0, 3.0, 4.0, 1.0])
    found = measure_closeness(made, wanted)
    assert found.psnr_db == pytest.approx(20 * math.log10(4 / math.sqrt(1 / 4)))
    assert found.cosine == pytest.approx(25 / (5 * math.sqrt(26)))
    assert found.relative_error == pytest.approx(1 / 5)


def test_another_peak_moves_psnr_alone() -> None:
    wanted, made = random(0), random(1)
    own, given_peak = (
        measure_closeness(made, wanted),
        measure_closeness(made, wanted, 10 * float(wanted.max() - wanted.min())),
    )
    assert given_peak.psnr_db == pytest.approx(own.psnr_db + 20)
    assert (given_peak.cosine, given_peak.relative_error) == (own.cosine, own.relative_error)


@given(seeds)
def test_the_same_is_identical(seed: int) -> None:
    latents = random(seed)
    assert measure_closeness(latents.clone(), latents) == Closeness(math.inf, 1.0, 0.0)


@given(seeds, st.floats(0.001, 1000))
def test_a_common_factor_changes_nothing(seed: int, factor: float) -> None:
    wanted, made = random(seed).double(), random(seed + 1).double()
    plain, scaled = measure_closeness(made, wanted), measure_closeness(factor * made, factor * wanted)
    assert scaled.psnr_db == pytest.approx(plain.psnr_db)
    assert scaled.cosine == pytest.approx(plain.cosine)
    assert scaled.relative_error == pytest.approx(plain.relative_error)


@given(seeds)
def test_half_the_error_is_six_decibels_closer(seed: int) -> None:
    wanted, error = random(seed).double(), random(seed + 1).double()
    far, near = (measure_closeness(wanted + share * error, wanted) for share in (0.1, 0.05))
    assert near.psnr_db - far.psnr_db == pytest.approx(20 * math.log10(2))
    assert far.relative_error == pytest.approx(2 * near.relative_error)


@pytest.mark.parametrize(
    ("made", "wanted", "expected"),
    [
        (0.0, 0.0, Closeness(math.inf, 1.0, 0.0)),
        (1.0, 0.0, Closeness(-math.inf, 0.0, math.inf)),
        (0.0, 1.0, Closeness(-math.inf, 0.0, 1.0)),
    ],
)
def test_latents_that_are_all_the_same_number(made: float, wanted: float, expected: Closeness) -> None:
    assert measure_closeness(torch.full((4,), made), torch.full((4,), wanted)) == expected


def test_broken_model_does_not_look_close() -> None:
    broken = random(0)
    broken[0, 0] = math.nan
    found = measure_closeness(broken, random(0))
    assert all(math.isnan(figure) for figure in (found.psnr_db, found.cosine, found.relative_error))


def test_steps_share_range_of_final_latents() -> None:
    wanted, made = trace(10), trace(20)
    found = compare_traces(7, made, wanted)
    peak = float(wanted.final.double().max() - wanted.final.double().min())
    assert found.seed == 7
    assert found.final == measure_closeness(made.final, wanted.final)
    assert found.steps == tuple(measure_closeness(a, b, peak) for a, b in zip(made.steps, wanted.steps, strict=True))


def test_different_step_counts_compare_final_latents_only() -> None:
    found = LatentComparison((compare_traces(1, trace(10, 3), trace(20, 4)), compare_traces(2, trace(30), trace(40))))
    assert found.seeds[0].steps == ()
    assert "different numbers of steps at seed 1." in found.table()
    assert "different" not in LatentComparison(found.seeds[1:]).table()


def test_table_lists_every_seed_and_step() -> None:
    numbers = (3, 12)
    found = LatentComparison(tuple(compare_traces(n, trace(10 * n), trace(10 * n + 5)) for n in numbers))
    summary, steps = found.table().split("\n\n")
    assert summary == found.summary()
    assert [line.split()[0] for line in summary.splitlines()[2:]] == ["3", "12", "mean"]
    assert [line.split()[:2] for line in steps.splitlines()[2:]] == [
        [str(n), str(i)] for n in numbers for i in (1, 2, 3)
    ]
    mean = sum(run.final.psnr_db for run in found.seeds) / 2
    assert summary.splitlines()[-1].split()[1] == f"{mean:.2f}"


def test_identical_models_are_called_so() -> None:
    found = LatentComparison((compare_traces(1, trace(1), trace(1)),))
    assert found.mean.psnr_db == math.inf
    assert found.table().count("identical") == 4
