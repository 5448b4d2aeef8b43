from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels import eager, ops
from calibrated_rounding.kernels.eager.product import _int_mm
from calibrated_rounding.tests.kernels.inputs import codes, operands, values
from comfy_kitchen.backends.eager.quantization import int8_linear, quantize_int8_rowwise
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 3000), st.integers(0, 2**32))
def test_integer_products_are_exact(m: int, n: int, k: int, seed: int) -> None:
    a, b = codes(m, k, seed), codes(n, k, seed + 1)
    product = eager.multiply_codes(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), a.long() @ b.long().T)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (17, 9, 30), (40, 8, 16)])
def test_padding_for_cublas_changes_nothing(m: int, n: int, k: int) -> None:
    a, b = codes(m, k, 1), codes(n, k, 2)
    assert torch.equal(_int_mm(a, b).long(), a.long() @ b.long().T)


def test_longest_sums_do_not_overflow() -> None:
    a = torch.full((1, 65_536), -128, dtype=torch.int8)
    assert eager.multiply_codes(a, a).item() == 2**30
    assert eager.multiply_codes(a, (-127 * torch.ones_like(a)).to(torch.int8)).item() == 65_536 * 128 * 127


@pytest.mark.parametrize("block", [None, 64, 128])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 16), (5, 200, 208), (33, 64, 300)])
def test_products_match_dequantized_operands(block: int | None, m: int, n: int, k: int) -> None:
    a, a_scale, b, b_scale = operands(m, n, k, block)
    left = ops.act_dequant(a, a_scale, block, torch.float32).double()
    right = b * b_scale if block is None else ops.weight_dequant(b, b_scale, block, torch.float32)
    reference = left @ right.double().T
    bias = torch.linspace(-5, 5, n)
    product = ops.int8_gemm(a, a_scale, b, b_scale, block, torch.float32)
    assert (product - reference).abs().max() <= 1e-5 * reference.abs().max()
    with_bias = ops.int8_addmm(bias, a, a_scale, b, b_scale, block, torch.float32)
    torch.testing.assert_close(with_bias, product + bias)
    codes, scale = ops.int8_gemm_quant(a, a_scale, b, b_scale, block)
    assert all(torch.equal(*pair) for pair in zip((codes, scale), ops.act_quant(product, block), strict=True))
    codes, scale = ops.int8_addmm_quant(bias, a, a_scale, b, b_scale, block)
    assert all(torch.equal(*pair) for pair in zip((codes, scale), ops.act_quant(with_bias, block), strict=True))


@pytest.mark.parametrize("rotation", [None, 16, 64, 256])
@pytest.mark.parametrize("per_row", [False, True])
def test_row_layers_match_comfy_kitchen(rotation: int | None, per_row: bool) -> None:
    x, w, bias = values(2, 7, 512), codes(96, 512), torch.linspace(-1, 1, 96)
    scale = torch.rand(96, 1) + 0.5 if per_row else torch.tensor(0.5)
    ours = ops.row_linear(x, w, scale, bias, rotation)
    theirs = int8_linear(
        x, w, scale, bias, out_dtype=x.dtype, convrot=rotation is not None, convrot_groupsize=rotation or 256
    )
    assert (ours - theirs).norm() <= (1e-3 if rotation else 1e-6) * theirs.norm()


def test_row_activations_are_the_hosts() -> None:
    x = values(9, 100)[1:]
    for result, reference in zip(ops.act_quant(x, None), quantize_int8_rowwise(x), strict=True):
        assert torch.equal(result, reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(64,), (0, 64), (1, 64), (2, 3, 64)])
def test_layers_take_any_leading_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, w = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype), torch.eye(64)
    for y in (
        ops.block_linear(x, *ops.weight_quant(w, 64), torch.zeros(64, dtype=dtype), 64),
        ops.row_linear(x, *ops.act_quant(w, None), None, None),
    ):
        assert y.shape == x.shape and y.dtype == dtype
        assert not x.numel() or (y - x).abs().max() <= x.abs().max() / 127
