from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calibrated_rounding.kernels import eager, ops
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.kernels.gpu.device import INTERPRETED
from calibrated_rounding.kernels.gpu.product import run_product
from calibrated_rounding.kernels.tables import KernelConfig
from calibrated_rounding.kernels.tiles import GemmShape, Tile
from calibrated_rounding.tests.kernels.inputs import codes, operands
from torch import Tensor

BACKENDS = ("triton", "triton_v2")


def assert_same_sums(result: Tensor, reference: Tensor) -> None:
    """The same but for the rounding of float32 sums, against the largest of them: terms may cancel."""
    assert (result - reference).abs().max() <= 2.0**-22 * reference.abs().max()


SHAPES = ((1, 5, 16), (3, 129, 48), (1, 300, 3072), (77, 70, 128), (130, 257, 208), (17, 33, 1))
"""M, N, K: one row, odd sizes, sizes one above a tile, K below, between and far above tiles and blocks."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [None, 64, 128])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_integer_products_are_exact(backend: str, block: int | None, m: int, n: int, k: int) -> None:
    a, a_scale, b, b_scale = operands(m, n, k, block)
    with kernel_backend(backend):
        product = ops.int8_gemm(a, torch.ones_like(a_scale), b, torch.ones_like(b_scale), block, torch.float32)
    # Below 2^24 float32 has every integer.
    exact = a.long() @ b.long().T
    assert exact.abs().max() < 2**24
    assert torch.equal(product.long(), exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [None, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
def test_scaled_products_match_reference(backend: str, block: int | None, dtype: torch.dtype, biased: bool) -> None:
    a, a_scale, b, b_scale = operands(35, 200, 336, block)
    a_scale, b_scale = a_scale / 128, b_scale / 128
    bias = torch.linspace(-9, 9, 200, dtype=dtype)
    with kernel_backend(backend):
        if biased:
            product = ops.int8_addmm(bias, a, a_scale, b, b_scale, block, dtype)
        else:
            product = ops.int8_gemm(a, a_scale, b, b_scale, block, dtype)
    reference = eager.gemm(a, a_scale, b, b_scale, bias if biased else None, block, torch.float32)
    assert product.dtype == dtype
    torch.testing.assert_close(product.float(), reference, rtol=UNIT[dtype], atol=UNIT[dtype])


# One unit in the last place: of float32 because sum and scale may be fused; the interpreter truncates to bfloat16.
UNIT = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_scale_for_all_columns(backend: str) -> None:
    a, a_scale, b, _ = operands(9, 40, 64, None)
    with kernel_backend(backend):
        product = ops.int8_gemm(a, a_scale, b, torch.tensor(0.25), None, torch.float32)
    assert_same_sums(product, eager.gemm(a, a_scale, b, torch.tensor(0.25), None, None, torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [None, 64, 128])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 5, 16), (33, 200, 144)])
def test_quantized_products_match_reference(backend: str, block: int | None, m: int, n: int, k: int) -> None:
    a, a_scale, b, b_scale = operands(m, n, k, block)
    bias = torch.linspace(-900, 900, n)
    with kernel_backend(backend):
        plain = ops.int8_gemm_quant(a, a_scale, b, b_scale, block)
        biased = ops.int8_addmm_quant(bias, a, a_scale, b, b_scale, block)
    assert_quantized(plain, eager.gemm_quant(a, a_scale, b, b_scale, None, block))
    assert_quantized(biased, eager.gemm_quant(a, a_scale, b, b_scale, bias, block))


def assert_quantized(result: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> None:
    """The same but for the rounding of float32 sums, which may move a code by one."""
    torch.testing.assert_close(result[1], reference[1], rtol=1e-6, atol=0)
    assert (result[0].int() - reference[0].int()).abs().max() <= 1
    assert (result[0] != reference[0]).float().mean() < 1e-3


TILES = (
    (None, Tile(rows=128, columns=256, depth=128, warps=8, stages=4)),
    (None, Tile(rows=128, columns=256, depth=64, warps=8, stages=3, order=1)),
    (None, Tile(rows=64, columns=128, depth=128, warps=4, stages=3, order=2)),
    (64, Tile(rows=128, columns=128, depth=64, warps=8, stages=3)),
    (128, Tile(rows=64, columns=64, depth=128, warps=4, stages=3)),
    (128, Tile(rows=128, columns=256, depth=128, warps=8, stages=3)),
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(("block", "tile"), TILES)
def test_every_tile_gives_same_result(backend: str, quantized: bool, block: int | None, tile: Tile) -> None:
    if quantized and (block is None or tile.columns < block):
        pytest.skip("a quantized tile is one block wide at least")
    m, n, k = 300, 330, 2 * tile.depth + 16
    a, a_scale, b, b_scale = operands(m, n, k, block)
    out = torch.empty(m, n, dtype=torch.int8 if quantized else torch.float32)
    out_scale = torch.empty(m, -(-n // block)) if quantized and block else None
    run_product(
        KernelConfig(backend, tile), GemmShape(m=m, n=n, k=k, block=block), a, a_scale, b, b_scale, None, out, out_scale
    )
    if out_scale is not None:
        assert_quantized((out, out_scale), eager.gemm_quant(a, a_scale, b, b_scale, None, block))
    else:
        assert_same_sums(out, eager.gemm(a, a_scale, b, b_scale, None, block, torch.float32))


@pytest.mark.parametrize("arch", ["sm80", "sm90"])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("columns", [64, 256])
def test_largest_block_sums_are_exact(arch: str, block: int, columns: int) -> None:
    """On sm80 sums start at the bits of a float: the largest ones of either sign are still whole numbers."""
    columns = min(columns, 2 * block)
    tile = Tile(rows=64, columns=columns, depth=block, warps=4, stages=3)
    low = torch.full((3, 2 * block), -128, dtype=torch.int8)
    a = torch.cat([low, -1 - low, codes(3, 2 * block)])
    b = torch.cat([low, -1 - low, codes(40, 2 * block, 2)])
    device, out = replace(INTERPRETED, arch=arch), torch.empty(9, 46)
    a_scale, b_scale = torch.ones(9, 2), torch.ones(1, 2)
    shape = GemmShape(m=9, n=46, k=2 * block, block=block)
    run_product(KernelConfig("triton", tile), shape, a, a_scale, b, b_scale, None, out, None, device)
    assert torch.equal(out.long(), a.long() @ b.long().T)


@pytest.mark.parametrize("backend", BACKENDS)
def test_longest_sum_does_not_overflow(backend: str) -> None:
    a = torch.full((2, 65_536), -128, dtype=torch.int8)
    one = torch.ones(2, 1)
    with kernel_backend(backend):
        product = ops.int8_gemm(a, one, a, one, None, torch.float32)
    assert torch.equal(product, torch.full((2, 2), 2.0**30))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [None, 128])
def test_operands_may_be_views(backend: str, block: int | None) -> None:
    a, a_scale, b, b_scale = operands(20, 40, 144, block)
    sliced, transposed, unaligned = torch.zeros(20, 320, dtype=torch.int8), b.T.contiguous().T, codes(20, 160)
    sliced[:, 160:304] = a
    unaligned[:, 1:145] = a
    reference = eager.gemm(a, a_scale, b, b_scale, None, block, torch.float32)
    with kernel_backend(backend):
        for view in (sliced[:, 160:304], unaligned[:, 1:145]):
            assert_same_sums(ops.int8_gemm(view, a_scale, b, b_scale, block, torch.float32), reference)
        assert_same_sums(
            ops.int8_gemm(a, a_scale.T.contiguous().T, transposed, b_scale, block, torch.float32), reference
        )


@pytest.mark.parametrize("described", [False, True])
def test_persistent_tiles_with_and_without_descriptors(described: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = replace(INTERPRETED, descriptors=described)
    monkeypatch.setattr("calibrated_rounding.kernels.gpu.product.get_device_info", lambda _: device)
    a, a_scale, b, b_scale = operands(70, 150, 80, None)
    with kernel_backend("triton_v2"):
        product = ops.int8_gemm(a, a_scale, b, b_scale, None, torch.float32)
    assert_same_sums(product, eager.gemm(a, a_scale, b, b_scale, None, None, torch.float32))
