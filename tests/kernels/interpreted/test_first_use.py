from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from calibrated_rounding.kernels import cases, eager, first_use, ops
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.kernels.cases import ProductOutputs
from calibrated_rounding.kernels.errors import KernelError
from calibrated_rounding.kernels.gpu import product
from calibrated_rounding.kernels.gpu.jit import product as jit
from calibrated_rounding.kernels.ldlq import ColumnBlock, ldlq_block
from calibrated_rounding.kernels.products import choose_product
from calibrated_rounding.kernels.tiles import GemmShape
from calibrated_rounding.quant.formats.grids import E4M3, INT8
from calibrated_rounding.tests.kernels.inputs import operands, values

CPU = torch.device("cpu")
OUTPUTS = ProductOutputs(dtype=torch.float32)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    first_use.forget()
    yield
    first_use.forget()


@pytest.mark.parametrize("backend", ["triton", "triton_v2"])
@pytest.mark.parametrize("block", [None, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [256, 200])
def test_products_pass(backend: str, block: int | None, dtype: torch.dtype, k: int) -> None:
    outputs = ProductOutputs(dtype=dtype, bias=dtype, one_scale=block is None)
    assert choose_product(backend, GemmShape(m=40, n=70, k=k, block=block), outputs, CPU) is not None


@pytest.mark.parametrize("grid", [INT8, E4M3])
def test_ldlq_passes_on_every_grid(grid: object) -> None:
    assert [cases.find_fault(case, CPU) for case in cases.ldlq(grid, CPU)] == [None, None]


@pytest.mark.parametrize("columns", [1, 16, 32])
def test_group_ldlq_passes(columns: int) -> None:
    assert [cases.find_fault(cases.group_ldlq(columns, integer, CPU), CPU) for integer in (True, False)] == [None] * 2


class Broken:
    """The kernel of products, with one output that is wrong."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            jit.fixed[grid](*arguments, **constants)
            arguments[5][-1, -1] += 0.5

        return launch


class Uncompilable:
    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        raise RuntimeError("no machine code")


@pytest.mark.parametrize("kernel", [Broken(), Uncompilable()])
def test_broken_kernel_is_refused_by_name_and_replaced(
    kernel: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(product, "fixed", kernel)
    a, a_scale, b, b_scale = operands(20, 40, 64, None)
    shape = GemmShape(m=20, n=40, k=64, block=None)
    assert choose_product("auto", shape, OUTPUTS, CPU) is None
    assert "The Triton kernel fixed product, row scales is wrong on cpu" in caplog.text
    with kernel_backend("triton"), pytest.raises(KernelError, match="fixed product, row scales is wrong"):
        ops.int8_gemm(a, a_scale, b, b_scale, None, torch.float32)
    with kernel_backend("triton_v2"):
        result = ops.int8_gemm(a, a_scale, b, b_scale, None, torch.float32)
    assert torch.equal(result, eager.gemm(a, a_scale, b, b_scale, None, None, torch.float32))


def test_ldlq_is_checked_before_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrated_rounding.kernels.gpu import ldlq

    def forget_errors(block: ColumnBlock, factor: torch.Tensor, targets: torch.Tensor, errors: torch.Tensor) -> None:
        errors.zero_()

    monkeypatch.setattr(ldlq, "ldlq_block", forget_errors)
    weight = values(8, 5)
    block = ColumnBlock(weight=weight, scale=torch.ones(8, 5), grid=INT8)
    with kernel_backend("triton"), pytest.raises(KernelError, match="ldlq is wrong on cpu"):
        ldlq_block(block, torch.eye(8), weight, torch.empty_like(weight))
