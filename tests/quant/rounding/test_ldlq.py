from __future__ import annotations

import itertools

import pytest
import torch
from calibrated_rounding.kernels import backend
from calibrated_rounding.kernels import ldlq as kernels
from calibrated_rounding.quant.errors import RecipeError
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.scales import absmax
from calibrated_rounding.quant.rounding import ldlq, round_nearest
from calibrated_rounding.quant.rounding.ldlq import BLOCK, round_ldlq
from hypothesis import given, settings
from hypothesis import strategies as st


def make_hessian(width: int, rank: int, damping: float = 0.01) -> torch.Tensor:
    rows = torch.randn(rank, width, generator=torch.Generator().manual_seed(width)) * torch.linspace(3, 0.1, width)
    return rows.T @ rows / rank + damping * torch.eye(width)


def cost(codes: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, hessian: torch.Tensor, name: str) -> float:
    error = (FORMATS[name].dequantize(codes, scale) - weight).double()
    return float(torch.trace(error @ hessian.double() @ error.T))


@pytest.mark.parametrize("name", ["int8_row", "float8_e4m3fn", "float8_e5m2", "mxfp8"])
@pytest.mark.parametrize("width", [BLOCK // 4, BLOCK, 2 * BLOCK + 32])
def test_cost_falls_with_each_pass(name: str, width: int) -> None:
    fmt = FORMATS[name]
    weight = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    scale, hessian = absmax(weight, fmt), make_hessian(width, width // 2)
    costs = [
        cost(round_ldlq(weight, scale, fmt, hessian, lambda: None, passes=passes), weight, scale, hessian, name)
        for passes in range(3)
    ]
    nearest = cost(round_nearest(weight, scale, fmt), weight, scale, hessian, name)
    assert costs[0] < 0.5 * nearest
    assert costs[2] <= costs[1] * (1 + 1e-6)
    assert costs[1] <= costs[0] * (1 + 1e-6)


@given(columns=st.integers(1, 40), seed=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_no_single_code_improves_after_descent(columns: int, seed: int) -> None:
    fmt = FORMATS["int8_row"]
    weight = torch.randn(1, columns, generator=torch.Generator().manual_seed(seed))
    scale, hessian = torch.full((1, 1), 0.3), make_hessian(columns, max(1, columns // 2), 0.1)
    codes = round_ldlq(weight, scale, fmt, hessian, lambda: None, passes=100)
    least = cost(codes, weight, scale, hessian, "int8_row")
    for i in range(columns):
        for step in (-1, 1):
            changed = codes.clone()
            changed[0, i] += step
            assert cost(changed, weight, scale, hessian, "int8_row") >= least * (1 - 1e-5)


@given(seed=st.integers(0, 500), width=st.sampled_from([24, BLOCK + 30]))
@settings(max_examples=20, deadline=None)
def test_pass_returns_share_of_cost_removed(seed: int, width: int) -> None:
    fmt, name = FORMATS["float8_e4m3fn"], "float8_e4m3fn"
    weight = torch.randn(16, width, generator=torch.Generator().manual_seed(seed))
    scale, hessian = absmax(weight, fmt), make_hessian(width, width)
    removed: list[float] = []
    run_pass = ldlq._run_descent_pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ldlq, "_run_descent_pass", lambda *args: removed.append(run_pass(*args)) or removed[-1])
        before, after = (
            cost(round_ldlq(weight, scale, fmt, hessian, lambda: None, passes=n), weight, scale, hessian, name)
            for n in (0, 1)
        )
    assert removed[0] == pytest.approx(1 - after / before, rel=0.2, abs=1e-3)


def test_passes_stop_when_gain_is_small() -> None:
    weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    fmt, hessian = FORMATS["float8_e4m3fn"], make_hessian(200, 100)

    def count_checks(least_gain: float) -> int:
        count = itertools.count()
        scale = absmax(weight, fmt)
        round_ldlq(weight, scale, fmt, hessian, lambda: next(count), passes=9, least_gain=least_gain)
        return next(count)

    assert count_checks(1.0) < count_checks(0.02) < count_checks(0.0)


def test_diagonal_hessian_gives_nearest() -> None:
    fmt = FORMATS["int8_row"]
    weight = torch.randn(16, 200, generator=torch.Generator().manual_seed(0))
    scale = absmax(weight, fmt)
    codes = round_ldlq(weight, scale, fmt, torch.diag(torch.rand(200) + 0.1), lambda: None, passes=1)
    assert torch.equal(codes, round_nearest(weight, scale, fmt))


def test_adjacent_codes_stay_adjacent() -> None:
    fmt = FORMATS["int8_row"]
    weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    scale, hessian = absmax(weight, fmt), make_hessian(200, 20)
    free, adjacent = (
        round_ldlq(weight, scale, fmt, hessian, lambda: None, adjacent=adjacent).float() * scale
        for adjacent in (False, True)
    )
    assert bool(((adjacent - weight).abs() <= scale * (1 + 1e-5)).all())
    assert not bool(((free - weight).abs() <= scale * (1 + 1e-5)).all())


def test_unknown_kernel_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_current", "fast")
    fmt, weight = FORMATS["int8_row"], torch.ones(8, 8)
    with pytest.raises(RecipeError, match=r"'fast'.*choose auto"):
        round_ldlq(weight, absmax(weight, fmt), fmt, torch.eye(8), lambda: None)


@pytest.mark.parametrize("name", ["int8_row", "int8_tensor"])
def test_shared_scale_takes_no_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, weight = FORMATS[name], torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(kernels, "ldlq_block", lambda block, *_: seen.append(block.scale))
    round_ldlq(weight, absmax(weight, fmt), fmt, torch.eye(40), lambda: None)
    assert seen and all(scale.shape == (40, 16) and scale.stride(0) == 0 for scale in seen)


def test_hessian_is_kept_unless_overwritten() -> None:
    weight = torch.randn(16, 200, generator=torch.Generator().manual_seed(0))
    fmt, hessian = FORMATS["int8_row"], make_hessian(200, 100)
    scale, before = absmax(weight, fmt), hessian.clone()
    codes = round_ldlq(weight, scale, fmt, hessian, lambda: None, passes=1)
    assert torch.equal(hessian, before)
    overwritten = round_ldlq(weight, scale, fmt, hessian, lambda: None, passes=1, overwrite_hessian=True)
    assert torch.equal(overwritten, codes)
    assert not torch.equal(hessian, before)
