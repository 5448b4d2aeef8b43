from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels.errors import KernelError
from calibrated_rounding.kernels.groups import GroupGrid, round_group
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

CODEBOOK = torch.tensor([-0.98, -0.79, -0.64, -0.5, -0.38, -0.26, -0.16, -0.05, 0.05, 0.16, 0.27, 0.38, 0.5, 0.64, 0.8])
WHOLE = torch.arange(-31.0, 32.0)
E2M1 = torch.tensor([-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
UNEVEN = torch.tensor([-5.0, -1.0, -0.99, 0.0, 0.003, 2.0])
GRIDS = {
    "codebook": (CODEBOOK, True),
    "whole": (WHOLE, True),
    "e2m1": (E2M1, False),
    "uneven": (UNEVEN, False),
}


def grid_points(levels: Tensor, integer: bool, scale: Tensor) -> Tensor:
    """All grid points, ``[L, *scale.shape]``."""
    points = levels.view(-1, *[1] * scale.dim()) * scale
    return points.round().clamp(-127, 127) if integer else points


@given(name=st.sampled_from(sorted(GRIDS)), seed=st.integers(0, 10**6), size=st.floats(1e-3, 1e4))
@settings(max_examples=200)
def test_round_finds_nearest_grid_point(name: str, seed: int, size: float) -> None:
    levels, integer = GRIDS[name]
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(1, 0x7F, (3, 50), generator=generator).to(torch.uint8)
    scale = bits.view(torch.float8_e4m3fn).float()
    target = torch.randn(3, 50, generator=generator) * size
    rounded = GroupGrid.of(levels, integer).round(target, scale, 1 / scale)
    points = grid_points(levels, integer, scale)
    assert bool((points == rounded).any(dim=0).all())
    assert torch.allclose((rounded - target).abs(), (points - target).abs().amin(dim=0), rtol=1e-5, atol=0)


def make_operands(seed: int, columns: int = 16, rows: int = 9, candidates: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    root = torch.linalg.cholesky(mix @ mix.T + torch.eye(columns))
    weight = 60 * torch.randn(columns, rows, generator=generator)
    bits = torch.randint(40, 0x7F, (candidates, rows), generator=generator).to(torch.uint8)
    return {
        "weight": weight,
        "targets": weight + torch.randn(columns, rows, generator=generator),
        "factor": (root / root.diagonal()).T.contiguous(),
        "pivots": root.diagonal().square(),
        "scales": bits.view(torch.float8_e4m3fn).float(),
    }


@pytest.mark.parametrize("name", GRIDS)
def test_each_row_takes_its_cheapest_candidate(name: str) -> None:
    levels, integer = GRIDS[name]
    grid, operands = GroupGrid.of(levels, integer), make_operands(0)
    best = round_group(grid, **operands)
    alone = [round_group(grid, **{**operands, "scales": scale[None]}) for scale in operands["scales"]]
    costs = torch.stack([result.cost for result in alone])
    assert torch.equal(best.cost, costs.amin(dim=0))
    for row, choice in enumerate(costs.argmin(dim=0).tolist()):
        assert torch.equal(best.errors[:, row], alone[choice].errors[:, row])
        assert best.scale[row] == operands["scales"][choice, row]


@pytest.mark.parametrize("name", GRIDS)
def test_cost_is_that_of_errors(name: str) -> None:
    """With targets at the weights, the cost is ``e^T H e`` of the group's errors."""
    operands = make_operands(1)
    operands["targets"] = operands["weight"]
    result = round_group(GroupGrid.of(*GRIDS[name]), **operands)
    unit = operands["factor"].T
    hessian = unit @ torch.diag(operands["pivots"]) @ unit.T
    cost = (result.errors * (hessian @ result.errors)).sum(dim=0)
    assert torch.allclose(result.cost, cost, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weight", (16,)),
        ("targets", (15, 9)),
        ("factor", (16, 9)),
        ("pivots", (9,)),
        ("scales", (4, 8)),
        ("scales", (0, 9)),
    ],
)
def test_operands_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    operands = make_operands(2)
    operands[name] = torch.ones(shape)
    with pytest.raises(KernelError):
        round_group(GroupGrid.of(E2M1, False), **operands)
