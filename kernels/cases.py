"""Small ragged problems on which a kernel is compared with its eager reference.

`selftest` runs all of them on request, `first_use` the ones of a kernel before that kernel is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import eager
from .eager.groups import GroupGrid, RoundedGroup
from .eager.groups import round_group as eager_round_group
from .eager.ldlq import ColumnBlock, Grid
from .eager.ldlq import descend_block as eager_descend_block
from .eager.ldlq import ldlq_block as eager_ldlq_block
from .tables import KernelConfig
from .tiles import GemmShape

Run = Callable[[], Sequence[Tensor]]

TOLERANCE = 1e-5
"""Allowed error relative to the largest value: float32 sums may be added in another order."""
ROWS = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kernel with one problem."""

    name: str
    run: Run
    reference: Run
    tolerance: float = 0.0
    """Most by which floats may differ, relative to the largest."""
    slack: int = 0
    """Most by which codes may differ: values near a tie may be summed in another order."""


@dataclass(frozen=True, kw_only=True)
class ProductOutputs:
    """How a product's results are stored; with a tile, what a product's kernel is compiled for."""

    dtype: torch.dtype
    bias: torch.dtype | None = None
    """Of the bias; None: there is none."""
    one_scale: bool = False
    """Whether the weight has one scale."""
    quantized: bool = False
    """Whether the results are quantized in blocks."""


def find_fault(case: Case, device: torch.device) -> str | None:
    """Run a kernel and its reference; returns what is wrong with the kernel, or None.

    Raises:
        torch.OutOfMemoryError: The device has no room for the problem, which says nothing about the kernel.
    """
    try:
        results = case.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return _compare(results, case.reference(), case)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a driver, a compiler or Triton raises is the fault
        return describe_error(error)


def describe_error(error: Exception) -> str:
    """Return an exception's type and first line."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


def _compare(results: Sequence[Tensor], references: Sequence[Tensor], case: Case) -> str | None:
    """Return the first difference."""
    for result, reference in zip(results, references, strict=True):
        if result.dtype != reference.dtype or result.shape != reference.shape:
            return f"{result.dtype} {list(result.shape)} instead of {reference.dtype} {list(reference.shape)}"
        largest = float((result.double() - reference.double()).abs().max())
        size = float(reference.double().abs().max())
        allowed = case.tolerance * size if reference.is_floating_point() else case.slack
        if not largest <= allowed:
            return f"differs by {largest:.3g}, at most {allowed:.3g} is allowed"
    return None


def draw(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return float32 normal values that depend on the shape only."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)).to(device)


def act_quant(block: int | None, columns: int, dtype: torch.dtype, device: torch.device) -> Case:
    from . import gpu

    x = draw(ROWS, columns, device).to(dtype)
    return Case(
        name=f"act_quant, block {block}",
        run=lambda: gpu.act_quant(x, block),
        reference=lambda: eager.act_quant(x, block),
    )


def act_dequant(block: int | None, columns: int, dtype: torch.dtype, device: torch.device) -> Case:
    from . import gpu

    codes, scale = eager.act_quant(draw(ROWS, columns, device), block)
    return Case(
        name=f"act_dequant, block {block}",
        run=lambda: [gpu.act_dequant(codes, scale, block, dtype)],
        reference=lambda: [eager.act_dequant(codes, scale, block, dtype)],
    )


def weight_quant(block: int, columns: int, dtype: torch.dtype, device: torch.device) -> Case:
    from . import gpu

    w = draw(block + ROWS, columns, device).to(dtype)
    return Case(
        name=f"weight_quant, block {block}",
        run=lambda: gpu.weight_quant(w, block),
        reference=lambda: eager.weight_quant(w, block),
    )


def weight_dequant(block: int, columns: int, dtype: torch.dtype, device: torch.device) -> Case:
    from . import gpu

    codes, scale = eager.weight_quant(draw(block + ROWS, columns, device), block)
    return Case(
        name=f"weight_dequant, block {block}",
        run=lambda: [gpu.weight_dequant(codes, scale, block, dtype)],
        reference=lambda: [eager.weight_dequant(codes, scale, block, dtype)],
    )


def int8_gelu(block: int | None, columns: int, approximate: str, device: torch.device) -> Case:
    """GELU's last bits differ, so scales may, and codes by one."""
    from . import gpu

    codes, scale = eager.act_quant(draw(ROWS, columns, device), block)
    return Case(
        name=f"int8_gelu {approximate}, block {block}",
        run=lambda: gpu.int8_gelu(codes, scale, block, approximate),
        reference=lambda: eager.int8_gelu(codes, scale, block, approximate),
        tolerance=TOLERANCE,
        slack=1,
    )


def rotate_quant(group: int, columns: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Rotations add in another order than matrix products."""
    from . import gpu

    x = draw(ROWS, columns, device).to(dtype)
    return Case(
        name=f"rotate_quant, group {group}",
        run=lambda: gpu.rotate_quant(x, group),
        reference=lambda: eager.rotate_quant(x, group),
        tolerance=TOLERANCE,
        slack=1,
    )


def product(
    config: KernelConfig, shape: GemmShape, outputs: ProductOutputs, device: torch.device, *, ragged: bool = True
) -> Case:
    """A product in a given configuration.

    Args:
        config: Backend and tile.
        shape: Of the product; ``ragged``: what is multiplied has a few tiles only, and the same remainders.
        outputs: How results are stored.
        device: Where it runs.
    """
    from .gpu.device import get_device_info
    from .gpu.product import run_product

    tile, block = config.tile, shape.block
    if ragged:
        n, k = tile.columns + 16 + shape.n % 16, 2 * tile.depth + shape.k % tile.depth
        shape = GemmShape(m=tile.rows + ROWS, n=n, k=k, block=block)
    a, a_scale = eager.act_quant(draw(shape.m, shape.k, device), block)
    weight = draw(shape.n, shape.k, device)
    b, b_scale = eager.act_quant(weight, None) if block is None else eager.weight_quant(weight, block)
    b_scale = b_scale[0, 0] if outputs.one_scale else b_scale
    bias = None if outputs.bias is None else draw(1, shape.n, device)[0].to(outputs.bias)
    # Few processors, so that each computes several tiles.
    info = replace(get_device_info(device), processors=3) if ragged else get_device_info(device)

    def run() -> Sequence[Tensor]:
        dtype = torch.int8 if outputs.quantized else outputs.dtype
        out = torch.empty(shape.m, shape.n, dtype=dtype, device=device)
        groups = -(-shape.n // (block or shape.n))
        scale = torch.empty(shape.m, groups, device=device) if outputs.quantized else None
        run_product(config, shape, a, a_scale, b, b_scale, bias, out, scale, info)
        return [out] if scale is None else [out, scale]

    def refer() -> Sequence[Tensor]:
        if outputs.quantized:
            return eager.gemm_quant(a, a_scale, b, b_scale, bias, block)
        return [eager.gemm(a, a_scale, b, b_scale, bias, block, outputs.dtype)]

    # A 16-bit result may be rounded to the other neighbour.
    place = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(outputs.dtype, 0.0)
    return Case(
        name=f"{config.backend} {shape.m} x {shape.n} x {shape.k}, block {block}, tile {tile.rows} x {tile.columns}",
        run=run,
        reference=refer,
        # Sums over whole rows are whole numbers, and exact.
        tolerance=place if block is None else TOLERANCE + place,
        slack=1,
    )


def ldlq(grid: Grid, device: torch.device) -> Iterator[Case]:
    """LDLQ and coordinate descent of sixteenths with a sparse matrix, whose sums are exact in any order."""
    from .gpu.ldlq import descend_block, ldlq_block

    weight = draw(40, 37, device).mul_(16).round_().div_(16)
    factor = torch.eye(40, device=device) + 0.25 * torch.ones(39, device=device).diag(1)
    block = ColumnBlock(weight=weight, scale=torch.ones(1, 37, device=device).expand(40, 37), grid=grid)

    def run(function: Callable[[ColumnBlock, Tensor, Tensor, Tensor], None]) -> Sequence[Tensor]:
        errors = torch.zeros_like(weight)
        function(block, factor, weight.clone(), errors)
        return [errors]

    for name, function, reference in (
        ("ldlq", ldlq_block, eager_ldlq_block),
        ("ldlq descent", descend_block, eager_descend_block),
    ):
        yield Case(
            name=name,
            run=lambda function=function: run(function),  # type: ignore[misc]
            reference=lambda reference=reference: run(reference),  # type: ignore[misc]
            tolerance=TOLERANCE,
        )


def group_ldlq(columns: int, integer: bool, device: torch.device) -> Case:
    from .gpu import groups

    grid = GroupGrid.of(torch.arange(-31.0, 32.0, device=device), integer)
    weight = draw(columns, 77, device).mul_(16).round_().div_(16)
    factor = torch.eye(columns, device=device) + 0.25 * torch.ones(columns - 1, device=device).diag(1)
    scales = torch.tensor([[0.5], [1.0], [2.0]], device=device).repeat(1, 77)
    ones = torch.ones(columns, device=device)

    def run(function: Callable[..., RoundedGroup]) -> Sequence[Tensor]:
        rounded = function(grid, weight, weight, factor, ones, scales)
        return [rounded.errors, rounded.scale, rounded.cost]

    return Case(
        name="group ldlq",
        run=lambda: run(groups.round_group),
        reference=lambda: run(eager_round_group),
        tolerance=TOLERANCE,
    )
