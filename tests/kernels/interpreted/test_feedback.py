from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from calibrated_rounding.kernels import feedback
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.kernels.eager import feedback as eager
from calibrated_rounding.kernels.feedback import Inputs
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


def exact(inputs: int, outputs: int, grid: Grid, scale: Tensor) -> Inputs:
    """A block whose sums float32 has exactly, whatever their order; many of its targets are ties, some out of range."""
    weight = sixteenths(inputs, outputs, largest=9, seed=1) * scale
    coupling = uniform(inputs, inputs, seed=2).mul_(1.2).round_().mul_(0.25)
    coupling.mul_(uniform(inputs, inputs, seed=3) > 1 - 4 / inputs).triu_(1)
    return Inputs(weight, scale, coupling + coupling.T + torch.eye(inputs), grid)


def assert_same(walk: str, inputs: Inputs, start: Tensor, errors: Tensor) -> Tensor:
    """The kernel's errors, which are the reference's bit for bit."""
    found, wanted = errors.clone(), errors.clone()
    getattr(feedback, walk)(inputs, start.clone(), found)
    getattr(eager, walk)(inputs, start.clone(), wanted)
    assert torch.equal(found, wanted)
    return found


def rows(scale: Tensor) -> Tensor:
    return scale[:1].expand(scale.shape)


def one(scale: Tensor) -> Tensor:
    return scale[0, 0].expand(scale.shape)


def per_block(scale: Tensor) -> Tensor:
    return scale


SHAPES = [(1, 33), (7, 1), (7, 50)]
CASES = [(grid, shared, *shape) for grid in (INT8, E4M3, E5M2) for shared in (rows, one, per_block) for shape in SHAPES]
CASES += [(INT8, rows, 128, 31), (E4M3, per_block, 128, 31), (E5M2, one, 128, 31)]


@pytest.mark.parametrize(("grid", "shared", "inputs", "outputs"), CASES)
def test_exact_sums_give_the_references_bits(
    grid: Grid, shared: Callable[[Tensor], Tensor], inputs: int, outputs: int
) -> None:
    block = exact(inputs, outputs, grid, shared(powers_of_two(inputs, outputs)))
    targets = block.weight + sixteenths(inputs, outputs, largest=2, seed=4) * block.scale
    errors = assert_same("feed_back", block, targets, torch.full_like(targets, float("nan")))
    gradient = sixteenths(inputs, outputs, largest=2, seed=5) * block.scale
    assert_same("descend", block, gradient, errors)


@GRIDS
def test_limits_hold(grid: Grid) -> None:
    block = exact(7, 33, grid, rows(powers_of_two(7, 33)))
    around = block.weight / block.scale
    limits = grid.below(around), grid.above(around)
    targets = block.weight + sixteenths(7, 33, largest=8, seed=4) * block.scale
    free = assert_same("feed_back", block, targets, torch.zeros(7, 33))
    errors = assert_same("feed_back", replace(block, limits=limits), targets, torch.zeros(7, 33))
    assert not torch.equal(free, errors)
    rounded = (block.weight + errors) / block.scale
    assert bool(((limits[0] <= rounded) & (rounded <= limits[1])).all())
    assert_same("descend", replace(block, limits=limits), targets, errors)


@GRIDS
def test_ties_their_neighbours_and_what_is_out_of_range(grid: Grid) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(grid.dtype).float()
    points = codes[codes.isfinite() & (codes.abs() <= grid.maximum)].unique()
    ties = (points[1:] + points[:-1]) / 2
    end = torch.tensor(float("inf"))
    near = [torch.nextafter(ties, end), torch.nextafter(ties, -end), torch.nextafter(points, end)]
    far = torch.tensor([1.0, 1.0 + 2.0**-6, 2.0, 1e30]) * grid.maximum
    x = torch.cat([points, ties, *near, far, -far, torch.tensor([2.0**-149, -(2.0**-126)])])[None]
    block = Inputs(torch.zeros_like(x), torch.ones(1, 1).expand(x.shape), torch.ones(1, 1), grid)
    rounded = assert_same("feed_back", block, x, torch.empty_like(x))
    assert torch.equal(rounded, grid.encode(x).float())


@pytest.mark.parametrize(
    ("grid", "inputs", "outputs"), [(INT8, 128, 31), (INT8, 7, 50), (E4M3, 128, 31), (E4M3, 1, 33), (E5M2, 7, 50)]
)
@pytest.mark.parametrize("walk", ["feed_back", "descend"])
def test_each_code_is_the_nearest_to_its_target_but_for_the_rounding_of_a_sum(
    grid: Grid, inputs: int, outputs: int, walk: str
) -> None:
    weight, noise = uniform(inputs, outputs, seed=1), uniform(inputs, inputs, seed=2)
    scale = (weight.abs().amax(0, keepdim=True) / grid.maximum).expand(inputs, outputs)
    block = Inputs(weight, scale, torch.eye(inputs) + (noise + noise.T) * 0.3 / inputs, grid)
    start = weight + uniform(inputs, outputs, seed=3) * scale
    before = uniform(inputs, outputs, seed=4) * scale
    if walk == "descend":
        start -= weight
    errors = before.clone()
    getattr(feedback, walk)(block, start.clone(), errors)
    target, slack = (_targets if walk == "feed_back" else _best)(
        block, start.double(), before.double(), errors.double()
    )
    low, high = (grid.encode(((target + sign * slack) / scale).float()).float() * scale for sign in (-1, 1))
    rounded = weight + errors
    assert bool(((low - 1e-6 * weight.abs() <= rounded) & (rounded <= high + 1e-6 * weight.abs())).all())
    undecided = low != high
    assert undecided.float().mean() < 0.01


def _targets(inputs: Inputs, targets: Tensor, before: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """What each input was to be rounded from, given the errors made, and how far float32 may be off it."""
    later = inputs.within.double().triu(1)
    target = targets - later @ errors
    return target, ROUNDING * (2 * len(errors) * (later.abs() @ errors.abs()) + 3 * target.abs())


def _best(inputs: Inputs, gradient: Tensor, before: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    within, change = inputs.within.double(), errors - before
    curvature = within.diagonal()[:, None]
    passed_on, size = within.tril(-1) @ change, within.tril(-1).abs() @ change.abs()
    step = (gradient + passed_on) / curvature
    target = inputs.weight + before - step
    slack = 2 * len(errors) * size + 3 * (inputs.weight.abs() + before.abs() + gradient.abs() + step.abs())
    return target, ROUNDING * slack


@pytest.mark.parametrize("name", ["int8_row", "mxfp8"])
def test_whole_layers_cost_what_the_references_do(name: str) -> None:
    fmt, weight, sample = FORMATS[name], uniform(32, 160), uniform(90, 160, seed=1)
    scale, metric = absmax(weight, fmt), sample.T @ sample / 90 + 0.01 * torch.eye(160)
    costs = []
    for backend in ("triton", "eager"):
        with kernel_backend(backend):
            codes = round_ldlq(weight, scale, fmt, metric, lambda: None, passes=1)
        error = fmt.dequantize(codes, scale) - weight
        costs.append(float((error @ metric * error).sum()))
    assert costs[0] == pytest.approx(costs[1], rel=0.02)


def test_a_part_of_larger_tensors() -> None:
    """As a block of a layer is: everything but the scale is a view whose rows are far apart."""
    block = exact(7, 33, INT8, rows(powers_of_two(7, 33)))
    wide = torch.full((3, 20, 90), 7.0)
    weight, targets, errors = (x[3:10, 20:53] for x in wide)
    weight.copy_(block.weight)
    targets.copy_(block.weight)
    metric = torch.full((30, 30), 7.0)
    metric[3:10, 3:10] = block.within
    wanted = assert_same("feed_back", block, block.weight, torch.zeros(7, 33))
    feedback.feed_back(replace(block, weight=weight, within=metric[3:10, 3:10]), targets, errors)
    assert torch.equal(errors, wanted)
    feedback.feed_back(replace(block, within=block.within.T.contiguous().T), block.weight, errors)
    assert torch.equal(errors, wanted)
    errors.fill_(7)
    assert bool((wide[2] == 7).all())
