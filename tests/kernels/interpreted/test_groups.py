from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels import groups
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.kernels.eager import groups as eager
from calibrated_rounding.kernels.groups import GroupGrid
from calibrated_rounding.quant.rounding.group_ldlq import GroupedWeight, compute_cost, round_groups
from torch import Tensor

E2M1 = torch.tensor([-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
GRIDS = {
    "sixteen": GroupGrid.of(torch.linspace(-1, 1, 17)[1:], True),
    "whole": GroupGrid.of(torch.arange(-31.0, 32.0), True),
    "e2m1": GroupGrid.of(E2M1, False),
}
ANY_GRID = pytest.mark.parametrize("name", GRIDS)


@pytest.fixture(autouse=True)
def triton() -> object:
    with kernel_backend("triton"):
        yield


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).mul_(2).sub_(1)


def make_operands(columns: int, rows: int, candidates: int) -> dict[str, Tensor]:
    """Operands whose sums are exact in float32, in any order; many targets are ties, some lie out of range."""
    weight = uniform(columns, rows, seed=1).mul_(1200).round_().div_(8)
    factor = uniform(columns, columns, seed=2).mul_(1.2).round_().mul_(0.25).triu_(1) + torch.eye(columns)
    return {
        "weight": weight,
        "targets": weight + uniform(columns, rows, seed=3).mul_(16).round_().div_(8),
        "factor": factor,
        "pivots": uniform(columns, seed=4).mul_(2).round_().exp2_(),
        "scales": uniform(candidates, rows, seed=5).mul_(3).add_(2).round_().exp2_(),
    }


@ANY_GRID
@pytest.mark.parametrize(("columns", "rows", "candidates"), [(16, 70, 5), (1, 1, 1), (8, 64, 3), (12, 65, 2)])
def test_exact_sums_give_reference_bits(name: str, columns: int, rows: int, candidates: int) -> None:
    operands = make_operands(columns, rows, candidates)
    result = groups.round_group(GRIDS[name], **operands)
    reference = eager.round_group(GRIDS[name], **operands)
    assert torch.equal(result.errors, reference.errors)
    assert torch.equal(result.scale, reference.scale)
    assert torch.allclose(result.cost, reference.cost, rtol=1e-6)


def test_operands_may_be_views() -> None:
    operands = make_operands(16, 33, 3)
    reference = eager.round_group(GRIDS["whole"], **operands)
    views = {name: torch.full((40, 90), 7.0)[3 : 3 + len(x), 20 : 20 + x.shape[-1]] for name, x in operands.items()}
    views["pivots"] = torch.full((40,), 7.0)[3:19]
    for name, x in operands.items():
        views[name].copy_(x)
    views["factor"] = views["factor"].T.contiguous().T
    result = groups.round_group(GRIDS["whole"], **views)
    assert torch.equal(result.errors, reference.errors)


@ANY_GRID
def test_whole_layers_cost_as_much_as_reference(name: str) -> None:
    grid, values, sample = GRIDS[name], uniform(24, 160, seed=0).mul_(60), uniform(90, 160, seed=1)
    hessian = sample.T @ sample / 90 + 0.01 * torch.eye(160)
    scale = values.view(24, 10, 16).abs().amax(dim=2).div_(grid.levels[-1]).to(torch.float8_e4m3fn).float()
    weight, costs = GroupedWeight(values=values, scale=scale), []
    for backend in ("triton", "eager"):
        with kernel_backend(backend):
            rounded = round_groups(weight, grid, hessian, passes=1, steps=(0, -1, 1))
        costs.append(float(compute_cost(rounded.values, values, hessian).sum()))
    assert costs[0] == pytest.approx(costs[1], rel=0.02)
