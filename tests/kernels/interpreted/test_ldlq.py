from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from calibrated_rounding.kernels import ldlq
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.kernels.eager import ldlq as eager
from calibrated_rounding.kernels.ldlq import ColumnBlock
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.grids import E4M3, E5M2, INT8, Grid
from calibrated_rounding.quant.formats.scales import absmax
from calibrated_rounding.quant.rounding.ldlq import round_ldlq
from torch import Tensor

GRIDS = pytest.mark.parametrize("grid", [INT8, E4M3, E5M2], ids=["int8", "e4m3", "e5m2"])
ROUNDING = 2.0**-24
"""Half the distance between float32 numbers just above 1."""


@pytest.fixture(autouse=True)
def triton() -> object:
    with kernel_backend("triton"):
        yield


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).mul_(2).sub_(1)


def sixteenths(*shape: int, largest: int, seed: int = 0) -> Tensor:
    """Multiples of 1/16 up to ``largest``."""
    return uniform(*shape, seed=seed).mul_(16 * largest).round_().div_(16)


def powers_of_two(*shape: int) -> Tensor:
    return uniform(*shape, seed=9).mul_(3).round_().exp2_()


def make_exact(columns: int, rows: int, grid: Grid, scale: Tensor) -> tuple[ColumnBlock, Tensor]:
    """A block and a matrix whose sums are exact in float32, in any order; many targets are ties, some out of range."""
    weight = sixteenths(columns, rows, largest=9, seed=1) * scale
    coupling = uniform(columns, columns, seed=2).mul_(1.2).round_().mul_(0.25)
    coupling.mul_(uniform(columns, columns, seed=3) > 1 - 4 / columns).triu_(1)
    return ColumnBlock(weight=weight, scale=scale, grid=grid), coupling + coupling.T + torch.eye(columns)


def assert_same(function: str, block: ColumnBlock, matrix: Tensor, start: Tensor, errors: Tensor) -> Tensor:
    """Assert that the kernel's errors are the reference's bit for bit, and return them."""
    result, reference = errors.clone(), errors.clone()
    getattr(ldlq, function)(block, matrix, start.clone(), result)
    getattr(eager, function)(block, matrix, start.clone(), reference)
    assert torch.equal(result, reference)
    return result


def per_row(scale: Tensor) -> Tensor:
    return scale[:1].expand(scale.shape)


def per_tensor(scale: Tensor) -> Tensor:
    return scale[0, 0].expand(scale.shape)


def per_block(scale: Tensor) -> Tensor:
    return scale


SHAPES = [(1, 33), (7, 1), (7, 50)]
SHARED = (per_row, per_tensor, per_block)
CASES = [(grid, shared, *shape) for grid in (INT8, E4M3, E5M2) for shared in SHARED for shape in SHAPES]
CASES += [(INT8, per_row, 128, 31), (E4M3, per_block, 128, 31), (E5M2, per_tensor, 128, 31)]


@pytest.mark.parametrize(("grid", "shared", "columns", "rows"), CASES)
def test_exact_sums_give_reference_bits(
    grid: Grid, shared: Callable[[Tensor], Tensor], columns: int, rows: int
) -> None:
    block, matrix = make_exact(columns, rows, grid, shared(powers_of_two(columns, rows)))
    targets = block.weight + sixteenths(columns, rows, largest=2, seed=4) * block.scale
    errors = assert_same("ldlq_block", block, matrix, targets, torch.full_like(targets, float("nan")))
    gradient = sixteenths(columns, rows, largest=2, seed=5) * block.scale
    assert_same("descend_block", block, matrix, gradient, errors)


@GRIDS
def test_limits_hold(grid: Grid) -> None:
    block, matrix = make_exact(7, 33, grid, per_row(powers_of_two(7, 33)))
    around = block.weight / block.scale
    limits = grid.below(around), grid.above(around)
    targets = block.weight + sixteenths(7, 33, largest=8, seed=4) * block.scale
    free = assert_same("ldlq_block", block, matrix, targets, torch.zeros(7, 33))
    errors = assert_same("ldlq_block", replace(block, limits=limits), matrix, targets, torch.zeros(7, 33))
    assert not torch.equal(free, errors)
    rounded = (block.weight + errors) / block.scale
    assert bool(((limits[0] <= rounded) & (rounded <= limits[1])).all())
    assert_same("descend_block", replace(block, limits=limits), matrix, targets, errors)


@GRIDS
def test_ties_neighbours_and_values_out_of_range(grid: Grid) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(grid.dtype).float()
    points = codes[codes.isfinite() & (codes.abs() <= grid.maximum)].unique()
    ties = (points[1:] + points[:-1]) / 2
    end = torch.tensor(float("inf"))
    near = [torch.nextafter(ties, end), torch.nextafter(ties, -end), torch.nextafter(points, end)]
    far = torch.tensor([1.0, 1.0 + 2.0**-6, 2.0, 1e30]) * grid.maximum
    x = torch.cat([points, ties, *near, far, -far, torch.tensor([2.0**-149, -(2.0**-126)])])[None]
    block = ColumnBlock(weight=torch.zeros_like(x), scale=torch.ones(1, 1).expand(x.shape), grid=grid)
    rounded = assert_same("ldlq_block", block, torch.ones(1, 1), x, torch.empty_like(x))
    assert torch.equal(rounded, grid.encode(x).float())


@pytest.mark.parametrize(
    ("grid", "columns", "rows"), [(INT8, 128, 31), (INT8, 7, 50), (E4M3, 128, 31), (E4M3, 1, 33), (E5M2, 7, 50)]
)
@pytest.mark.parametrize("function", ["ldlq_block", "descend_block"])
def test_codes_are_nearest_within_float32_error(grid: Grid, columns: int, rows: int, function: str) -> None:
    weight, noise = uniform(columns, rows, seed=1), uniform(columns, columns, seed=2)
    scale = (weight.abs().amax(0, keepdim=True) / grid.maximum).expand(columns, rows)
    block = ColumnBlock(weight=weight, scale=scale, grid=grid)
    matrix = torch.eye(columns) + (noise + noise.T) * 0.3 / columns
    start = weight + uniform(columns, rows, seed=3) * scale
    before = uniform(columns, rows, seed=4) * scale
    if function == "descend_block":
        start -= weight
    errors = before.clone()
    getattr(ldlq, function)(block, matrix, start.clone(), errors)
    if function == "ldlq_block":
        target, slack = _ldlq_targets(matrix.double(), start.double(), errors.double())
    else:
        target, slack = _descent_targets(block, matrix.double(), start.double(), before.double(), errors.double())
    low, high = (grid.encode(((target + sign * slack) / scale).float()).float() * scale for sign in (-1, 1))
    rounded = weight + errors
    assert bool(((low - 1e-6 * weight.abs() <= rounded) & (rounded <= high + 1e-6 * weight.abs())).all())
    undecided = low != high
    assert undecided.float().mean() < 0.01


def _ldlq_targets(factor: Tensor, targets: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """The exact target of each column, given the errors made, and the float32 error allowed on it."""
    later = factor.triu(1)
    target = targets - later @ errors
    return target, ROUNDING * (2 * len(errors) * (later.abs() @ errors.abs()) + 3 * target.abs())


def _descent_targets(
    block: ColumnBlock, hessian: Tensor, gradient: Tensor, before: Tensor, errors: Tensor
) -> tuple[Tensor, Tensor]:
    change, curvature, earlier = errors - before, hessian.diagonal()[:, None], hessian.tril(-1)
    size = earlier.abs() @ change.abs()
    step = (gradient + earlier @ change) / curvature
    target = block.weight + before - step
    slack = 2 * len(errors) * size + 3 * (block.weight.abs() + before.abs() + gradient.abs() + step.abs())
    return target, ROUNDING * slack


@pytest.mark.parametrize("name", ["int8_row", "mxfp8"])
def test_whole_layers_cost_as_much_as_reference(name: str) -> None:
    fmt, weight, sample = FORMATS[name], uniform(32, 160), uniform(90, 160, seed=1)
    scale, hessian = absmax(weight, fmt), sample.T @ sample / 90 + 0.01 * torch.eye(160)
    costs = []
    for backend in ("triton", "eager"):
        with kernel_backend(backend):
            codes = round_ldlq(weight, scale, fmt, hessian, lambda: None, passes=1)
        error = fmt.dequantize(codes, scale) - weight
        costs.append(float((error @ hessian * error).sum()))
    assert costs[0] == pytest.approx(costs[1], rel=0.02)


def test_operands_may_be_views() -> None:
    """As for a block of a layer: everything but the scale is a view whose rows are far apart."""
    block, matrix = make_exact(7, 33, INT8, per_row(powers_of_two(7, 33)))
    wide = torch.full((3, 20, 90), 7.0)
    weight, targets, errors = (x[3:10, 20:53] for x in wide)
    weight.copy_(block.weight)
    targets.copy_(block.weight)
    wide_matrix = torch.full((30, 30), 7.0)
    wide_matrix[3:10, 3:10] = matrix
    reference = assert_same("ldlq_block", block, matrix, block.weight, torch.zeros(7, 33))
    ldlq.ldlq_block(replace(block, weight=weight), wide_matrix[3:10, 3:10], targets, errors)
    assert torch.equal(errors, reference)
    ldlq.ldlq_block(block, matrix.T.contiguous().T, block.weight, errors)
    assert torch.equal(errors, reference)
    errors.fill_(7)
    assert bool((wide[2] == 7).all())
