from __future__ import annotations

import itertools

import pytest
import torch
from calibrated_rounding.kernels.groups import GroupGrid
from calibrated_rounding.quant.rounding.group_ldlq import GroupedWeight, compute_cost, round_groups
from calibrated_rounding.quant.rounding.ldlq import BLOCK
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

E2M1 = torch.tensor([-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
GRIDS = {
    "sixteen": GroupGrid.of(torch.linspace(-1, 1, 16), True),
    "whole": GroupGrid.of(torch.arange(-31.0, 32.0), True),
    "e2m1": GroupGrid.of(E2M1, False),
}
ANY_GRID = st.sampled_from(sorted(GRIDS))


def make_hessian(width: int, rank: int, seed: int = 0) -> Tensor:
    rows = torch.randn(rank, width, generator=torch.Generator().manual_seed(seed)) * torch.linspace(3, 0.1, width)
    return rows.T @ rows / rank + 0.01 * torch.eye(width)


def make_weight(grid: GroupGrid, rows: int, columns: int, seed: int = 0, group: int = 16) -> GroupedWeight:
    """A random weight; the largest magnitude of each group lies on its last grid point."""
    values = 30 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    scale = values.view(rows, -1, group).abs().amax(dim=2) / grid.levels[-1]
    return GroupedWeight(values=values, scale=to_e4m3(scale))


def to_e4m3(scale: Tensor) -> Tensor:
    return scale.clamp(min=2.0**-9).to(torch.float8_e4m3fn).float()


def round_nearest(weight: GroupedWeight, grid: GroupGrid) -> Tensor:
    wide = weight.scale.repeat_interleave(weight.values.shape[1] // weight.scale.shape[1], dim=1)
    return grid.round(weight.values, wide, 1 / wide)


def total(values: Tensor, weight: GroupedWeight, hessian: Tensor) -> float:
    return float(compute_cost(values.double(), weight.values.double(), hessian.double()).sum())


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("width", [32, BLOCK, 2 * BLOCK + 32])
def test_cost_falls_with_each_pass(name: str, width: int) -> None:
    grid = GRIDS[name]
    weight, hessian = make_weight(grid, 48, width), make_hessian(width, width // 2)
    costs = [total(round_groups(weight, grid, hessian, passes=n).values, weight, hessian) for n in range(4)]
    assert costs[0] < 0.5 * total(round_nearest(weight, grid), weight, hessian)
    assert all(later <= before * (1 + 1e-5) for before, later in itertools.pairwise(costs))
    assert costs[3] < costs[0] or width < BLOCK


@given(name=ANY_GRID, seed=st.integers(0, 1000), groups=st.integers(1, 10), rank=st.integers(1, 200))
@settings(max_examples=40)
def test_refinement_never_raises_cost_of_a_row(name: str, seed: int, groups: int, rank: int) -> None:
    grid = GRIDS[name]
    weight, hessian = make_weight(grid, 5, 16 * groups, seed), make_hessian(16 * groups, rank, seed)
    before, after = (round_groups(weight, grid, hessian, passes=n).values.double() for n in (0, 3))
    costs, refined = (compute_cost(v, weight.values.double(), hessian.double()) for v in (before, after))
    assert bool((refined <= costs * (1 + 1e-4)).all())


@given(name=ANY_GRID, seed=st.integers(0, 1000), size=st.sampled_from([1e-6, 1e-2, 1.0, 8.0]))
@settings(max_examples=40)
def test_result_lies_on_the_grids_of_its_scales(name: str, seed: int, size: float) -> None:
    grid = GRIDS[name]
    plain = make_weight(grid, 4, 64, seed)
    values = plain.values * size
    values[1], values[2, :16] = 0.0, 0.0
    weight = GroupedWeight(values=values, scale=to_e4m3(plain.scale * size))
    result = round_groups(weight, grid, make_hessian(64, 30, seed), passes=1)
    assert torch.equal(result.scale, to_e4m3(result.scale))
    assert bool((torch.isfinite(result.scale) & (result.scale > 0)).all())
    assert torch.allclose(result.values, round_nearest(result, grid), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", GRIDS)
def test_rows_of_zeros_stay_zero(name: str) -> None:
    grid = GRIDS[name]
    weight = GroupedWeight(values=torch.zeros(2, 32), scale=torch.full((2, 2), 2.0**-9))
    assert not bool(round_groups(weight, grid, make_hessian(32, 10), passes=2).values.any())


def test_rows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales decide the order of groups, so all rows have the same."""
    grid = GRIDS["sixteen"]
    weight, hessian = make_weight(grid, 40, 160), make_hessian(160, 80)
    weight = GroupedWeight(values=weight.values, scale=torch.full_like(weight.scale, 64.0))
    whole = round_groups(weight, grid, hessian, passes=1)
    monkeypatch.setattr("calibrated_rounding.quant.rounding.group_ldlq.PART_ROWS", 16)
    parts = round_groups(weight, grid, hessian, passes=1)
    assert (parts.values != whole.values).float().mean() < 0.01


def test_free_scales_cost_less_than_fixed() -> None:
    for grid in GRIDS.values():
        weight, hessian = make_weight(grid, 32, 160), make_hessian(160, 80)
        fixed, free = (round_groups(weight, grid, hessian, steps=steps) for steps in ((0,), (0, -1, 1)))
        assert torch.equal(fixed.scale, weight.scale)
        assert total(free.values, weight, hessian) < total(fixed.values, weight, hessian)


def test_passes_stop_when_gain_is_small() -> None:
    grid = GRIDS["whole"]
    weight, hessian = make_weight(grid, 32, 192), make_hessian(192, 100)

    def count_checks(least_gain: float) -> int:
        count = itertools.count()
        round_groups(weight, grid, hessian, lambda: next(count), passes=9, least_gain=least_gain)
        return next(count)

    assert count_checks(1.0) < count_checks(0.0)


@pytest.mark.parametrize("group", [16, 32, 64])
def test_groups_of_other_sizes(group: int) -> None:
    grid = GRIDS["sixteen"]
    weight, hessian = make_weight(grid, 16, 256, group=group), make_hessian(256, 100)
    result = round_groups(weight, grid, hessian, passes=1)
    assert total(result.values, weight, hessian) < 0.5 * total(round_nearest(weight, grid), weight, hessian)
