from __future__ import annotations

import itertools

import pytest
import torch
from calibrated_rounding.kernels import backend
from calibrated_rounding.quant.errors import RecipeError
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.scales import absmax
from calibrated_rounding.quant.rounding import ldlq as feedback
from calibrated_rounding.quant.rounding import round_nearest
from calibrated_rounding.quant.rounding.ldlq import BLOCK, round_ldlq
from hypothesis import given, settings
from hypothesis import strategies as st


def metric_of(width: int, rank: int, damping: float = 0.01) -> torch.Tensor:
    rows = torch.randn(rank, width, generator=torch.Generator().manual_seed(width)) * torch.linspace(3, 0.1, width)
    return rows.T @ rows / rank + damping * torch.eye(width)


def cost(codes: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, metric: torch.Tensor, name: str) -> float:
    error = (FORMATS[name].dequantize(codes, scale) - weight).double()
    return float(torch.trace(error @ metric.double() @ error.T))


@pytest.mark.parametrize("name", ["int8_row", "float8_e4m3fn", "float8_e5m2", "mxfp8"])
@pytest.mark.parametrize("width", [BLOCK // 4, BLOCK, 2 * BLOCK + 32])
def test_cost_falls_and_falls_further_with_each_pass(name: str, width: int) -> None:
    fmt = FORMATS[name]
    weight = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    scale, metric = absmax(weight, fmt), metric_of(width, width // 2)
    costs = [
        cost(round_ldlq(weight, scale, fmt, metric, lambda: None, passes=passes), weight, scale, metric, name)
        for passes in range(3)
    ]
    nearest = cost(round_nearest(weight, scale, fmt), weight, scale, metric, name)
    assert costs[0] < 0.5 * nearest
    assert costs[2] <= costs[1] * (1 + 1e-6)
    assert costs[1] <= costs[0] * (1 + 1e-6)


@given(columns=st.integers(1, 40), seed=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_after_descent_no_single_code_can_be_improved(columns: int, seed: int) -> None:
    fmt = FORMATS["int8_row"]
    weight = torch.randn(1, columns, generator=torch.Generator().manual_seed(seed))
    scale, metric = torch.full((1, 1), 0.3), metric_of(columns, max(1, columns // 2), 0.1)
    codes = round_ldlq(weight, scale, fmt, metric, lambda: None, passes=100)
    found = cost(codes, weight, scale, metric, "int8_row")
    for i in range(columns):
        for step in (-1, 1):
            changed = codes.clone()
            changed[0, i] += step
            assert cost(changed, weight, scale, metric, "int8_row") >= found * (1 - 1e-5)


@given(seed=st.integers(0, 500), width=st.sampled_from([24, BLOCK + 30]))
@settings(max_examples=20, deadline=None)
def test_a_pass_tells_the_share_of_the_cost_that_it_removed(seed: int, width: int) -> None:
    fmt, name = FORMATS["float8_e4m3fn"], "float8_e4m3fn"
    weight = torch.randn(16, width, generator=torch.Generator().manual_seed(seed))
    scale, metric = absmax(weight, fmt), metric_of(width, width)
    told: list[float] = []
    descend = feedback._descend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feedback, "_descend", lambda *operands: told.append(descend(*operands)) or told[-1])
        before, after = (
            cost(round_ldlq(weight, scale, fmt, metric, lambda: None, passes=n), weight, scale, metric, name)
            for n in (0, 1)
        )
    assert told[0] == pytest.approx(1 - after / before, rel=0.2, abs=1e-3)


def test_passes_end_when_they_gain_little() -> None:
    weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    fmt, metric = FORMATS["float8_e4m3fn"], metric_of(200, 100)

    def ticks(least_gain: float) -> int:
        count = itertools.count()
        scale = absmax(weight, fmt)
        round_ldlq(weight, scale, fmt, metric, lambda: next(count), passes=9, least_gain=least_gain)
        return next(count)

    assert ticks(1.0) < ticks(0.02) < ticks(0.0)


def test_a_diagonal_metric_leaves_nearest() -> None:
    fmt = FORMATS["int8_row"]
    weight = torch.randn(16, 200, generator=torch.Generator().manual_seed(0))
    scale = absmax(weight, fmt)
    codes = round_ldlq(weight, scale, fmt, torch.diag(torch.rand(200) + 0.1), lambda: None, passes=1)
    assert torch.equal(codes, round_nearest(weight, scale, fmt))


def test_adjacent_codes_stay_adjacent() -> None:
    fmt = FORMATS["int8_row"]
    weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    scale, metric = absmax(weight, fmt), metric_of(200, 20)
    free, adjacent = (
        round_ldlq(weight, scale, fmt, metric, lambda: None, adjacent=adjacent).float() * scale
        for adjacent in (False, True)
    )
    assert bool(((adjacent - weight).abs() <= scale * (1 + 1e-5)).all())
    assert not bool(((free - weight).abs() <= scale * (1 + 1e-5)).all())


def test_a_kernel_backend_that_is_unknown_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_current", "fast")
    fmt, weight = FORMATS["int8_row"], torch.ones(8, 8)
    with pytest.raises(RecipeError, match=r"'fast'.*choose auto"):
        round_ldlq(weight, absmax(weight, fmt), fmt, torch.eye(8), lambda: None)


@pytest.mark.parametrize("name", ["int8_row", "int8_tensor"])
def test_a_scale_that_inputs_share_takes_no_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, weight = FORMATS[name], torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(feedback.kernels.feedback(), "feed_back", lambda inputs, *_: seen.append(inputs.scale))
    round_ldlq(weight, absmax(weight, fmt), fmt, torch.eye(40), lambda: None)
    assert seen and all(scale.shape == (40, 16) and scale.stride(0) == 0 for scale in seen)
