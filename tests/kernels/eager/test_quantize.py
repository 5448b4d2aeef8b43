from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels import ops
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

BLOCKS = st.sampled_from([None, 64, 128])
DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])
SEEDS = st.integers(0, 2**32)


def drawn(seed: int, *shape: int) -> Tensor:
    """Values whose magnitudes span many powers of two, some zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).mul(4).exp2()
    return x.clamp(-6e4, 6e4) * (torch.rand(shape, generator=generator) > 0.1)


@given(SEEDS, st.integers(1, 5), st.integers(1, 300), BLOCKS, DTYPES)
def test_activations_are_within_half_a_step(seed: int, m: int, k: int, block: int | None, dtype: torch.dtype) -> None:
    x = drawn(seed, m, k).to(dtype)
    codes, scale = ops.act_quant(x, block)
    assert codes.shape == x.shape and codes.dtype == torch.int8
    assert scale.shape == (m, 1 if block is None else -(-k // block)) and scale.dtype == torch.float32
    assert codes.abs().max() <= 127
    step = scale.repeat_interleave(block or k, 1)[:, :k]
    error = (ops.act_dequant(codes, scale, block, torch.float32) - x.float()).abs()
    assert (error <= step * (0.5 + 1e-4)).all()
    # The largest of each group has the last code, or all are zero and the scale is 1.
    for group, own in zip(codes.split(block or k, 1), scale.unbind(1), strict=True):
        assert (group.abs().amax(1).eq(127) | own.eq(1.0)).all()


@given(SEEDS, st.integers(1, 200), st.integers(1, 200), st.sampled_from([64, 128]), DTYPES)
def test_weights_are_within_half_a_step(seed: int, n: int, k: int, block: int, dtype: torch.dtype) -> None:
    w = drawn(seed, n, k).to(dtype)
    codes, scale = ops.weight_quant(w, block)
    assert scale.shape == (-(-n // block), -(-k // block))
    step = scale.repeat_interleave(block, 0)[:n].repeat_interleave(block, 1)[:, :k]
    error = (ops.weight_dequant(codes, scale, block, torch.float32) - w.float()).abs()
    assert (error <= step * (0.5 + 1e-4)).all()


@given(SEEDS, BLOCKS)
def test_requantizing_dequantized_values_changes_nothing(seed: int, block: int | None) -> None:
    codes, scale = ops.act_quant(drawn(seed, 3, 200), block)
    again, _ = ops.act_quant(ops.act_dequant(codes, scale, block, torch.float32), block)
    assert torch.equal(again, codes)


@given(SEEDS, BLOCKS)
def test_negating_negates_the_codes(seed: int, block: int | None) -> None:
    x = drawn(seed, 3, 200)
    (codes, scale), (negated, same) = ops.act_quant(x, block), ops.act_quant(-x, block)
    assert torch.equal(negated, -codes)
    assert torch.equal(same, scale)


def test_halves_are_rounded_to_even() -> None:
    codes, scale = ops.act_quant(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]), None)
    assert scale.item() == 1.0
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2]]


def test_zero_and_tiny_rows_have_normal_scales() -> None:
    codes, scale = ops.act_quant(torch.tensor([[0.0, 0.0], [1e-40, 0.0]]), None)
    assert scale.flatten().tolist() == [1.0, 2.0**-126]
    assert not codes.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_values_reach_the_scale(bad: float) -> None:
    _, scale = ops.act_quant(torch.tensor([[1.0, bad], [1.0, 2.0]]), None)
    assert scale.isfinite().flatten().tolist() == [False, True]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_matches_float_gelu(approximate: str) -> None:
    codes, scale = ops.act_quant(drawn(1, 4, 200).clamp(-6, 6), 64)
    x = ops.act_dequant(codes, scale, 64, torch.float32)
    reference = ops.act_quant(torch.nn.functional.gelu(x, approximate=approximate), 64)
    for result, want in zip(ops.int8_gelu(codes, scale, 64, approximate), reference, strict=True):
        assert torch.equal(result, want)
