from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.formats.grids import E4M3, E5M2, INT8, Grid
from hypothesis import given
from hypothesis import strategies as st

GRIDS = pytest.mark.parametrize("grid", [INT8, E4M3, E5M2], ids=["int8", "e4m3", "e5m2"])
VALUES = st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=64).map(torch.tensor)


def points(grid: Grid) -> torch.Tensor:
    """Every finite number on the grid, in order."""
    if grid is INT8:
        return torch.arange(-127.0, 128.0)
    values = torch.arange(256, dtype=torch.uint8).view(grid.dtype).float()
    return values[values.isfinite()].unique()


@GRIDS
@given(x=VALUES)
def test_code_is_the_nearest_point(grid: Grid, x: torch.Tensor) -> None:
    distance = (x[:, None] - points(grid)).abs().amin(dim=1)
    assert torch.equal((grid.encode(x).float() - x).abs(), distance)


@GRIDS
@given(x=VALUES)
def test_neighbours_enclose_and_are_adjacent(grid: Grid, x: torch.Tensor) -> None:
    lower, upper = grid.below(x), grid.above(x)
    inside = x.abs() <= grid.maximum
    assert bool((lower <= x)[inside].all())
    assert bool((upper >= x)[inside].all())
    all_points = points(grid)
    between = ((all_points > lower[:, None]) & (all_points < upper[:, None])).sum()
    assert int(between) == 0
    assert set(lower.tolist()) | set(upper.tolist()) <= set(all_points.tolist())


@GRIDS
@given(x=VALUES)
def test_spacing_is_distance_between_neighbours(grid: Grid, x: torch.Tensor) -> None:
    lower, upper = grid.below(x), grid.above(x)
    between = upper > lower
    assert torch.equal(grid.spacing(x)[between], (upper - lower)[between])
    on = points(grid)
    assert torch.equal(grid.spacing(on[on >= 0])[:-1], on[on >= 0].diff())


@GRIDS
@given(x=VALUES)
def test_grid_parameters_give_its_points(grid: Grid, x: torch.Tensor) -> None:
    inside = x.clamp(-grid.maximum, grid.maximum)
    exponent = torch.frexp(inside).exponent.sub(1).clamp(min=grid.smallest_exponent)
    step = torch.ldexp(torch.ones_like(x), exponent - grid.mantissa_bits)
    assert torch.equal(inside.div(step).round().mul(step), grid.encode(x).float())


@GRIDS
@given(x=VALUES)
def test_negation(grid: Grid, x: torch.Tensor) -> None:
    assert torch.equal(grid.encode(-x).float(), -grid.encode(x).float())


@GRIDS
def test_points_are_fixed_and_the_ends_saturate(grid: Grid) -> None:
    on = points(grid)
    assert torch.equal(grid.encode(on).float(), on)
    assert torch.equal(grid.below(on), on)
    assert torch.equal(grid.above(on), on)
    far = torch.tensor([3e38, -3e38])
    assert grid.encode(far).float().tolist() == [grid.maximum, -grid.maximum]
