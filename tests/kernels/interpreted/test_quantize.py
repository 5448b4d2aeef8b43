from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels import eager, ops
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.tests.kernels.inputs import values

SHAPES = ((1, 16), (3, 48), (2, 3, 128), (5, 200), (2, 3072), (3, 1))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(autouse=True)
def triton() -> object:
    with kernel_backend("triton"):
        yield


@pytest.mark.parametrize("block", [None, 64, 128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_bit_for_bit(block: int | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = values(*shape, dtype=dtype)
    for result, reference in zip(ops.act_quant(x, block), eager.act_quant(x, block), strict=True):
        assert torch.equal(result, reference)


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("shape", [(1, 16), (70, 48), (129, 257), (3, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_bit_for_bit(block: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = values(*shape, dtype=dtype)
    codes, scale = ops.weight_quant(w, block)
    for result, reference in zip((codes, scale), eager.weight_quant(w, block), strict=True):
        assert torch.equal(result, reference)
    wide = ops.weight_dequant(codes, scale, block, torch.float32)
    assert torch.equal(wide, eager.weight_dequant(codes, scale, block, torch.float32))


@pytest.mark.parametrize("block", [None, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dequantized_bit_for_bit(block: int | None, dtype: torch.dtype) -> None:
    codes, scale = eager.act_quant(values(2, 5, 200).clamp(-100, 100), block)
    result = ops.act_dequant(codes, scale, block, dtype)
    assert torch.equal(result, eager.act_dequant(codes, scale, block, dtype))


@pytest.mark.parametrize("block", [None, 64, 128])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(block: int | None, approximate: str) -> None:
    codes, scale = eager.act_quant(values(2, 5, 200), block)
    result, reference = (
        ops.int8_gelu(codes, scale, block, approximate),
        eager.int8_gelu(codes, scale, block, approximate),
    )
    torch.testing.assert_close(result[1], reference[1], rtol=1e-6, atol=0)
    assert (result[0].int() - reference[0].int()).abs().max() <= 1
    assert (result[0] != reference[0]).float().mean() < 1e-3


@pytest.mark.parametrize(("group", "columns"), [(16, 16), (16, 48), (64, 192), (256, 256), (256, 768)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation(group: int, columns: int, dtype: torch.dtype) -> None:
    x = values(2, 5, columns, dtype=dtype)
    result, reference = ops.rotate_quant(x, group), eager.rotate_quant(x, group)
    torch.testing.assert_close(result[1], reference[1], rtol=1e-6, atol=0)
    assert (result[0].int() - reference[0].int()).abs().max() <= 1
    assert (result[0] != reference[0]).float().mean() < 1e-3


def test_zero_row_has_scale_one() -> None:
    for codes, scale in (ops.act_quant(torch.zeros(2, 100), 64), ops.rotate_quant(torch.zeros(2, 256), 256)):
        assert torch.equal(scale, torch.ones_like(scale))
        assert not codes.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_values_reach_the_scale(bad: float) -> None:
    x = torch.ones(2, 128)
    x[1, 5] = bad
    for scale in (ops.act_quant(x, 64)[1][:, :1], ops.act_quant(x, None)[1], ops.rotate_quant(x, 64)[1]):
        assert scale[0].isfinite().all()
        assert not scale[1].isfinite().any()


def test_views() -> None:
    x = values(12, 400)
    for view in (x[:, 7:207], x[::2, ::2], x.T[:64], x.view(3, 4, 400).transpose(0, 1), x[0]):
        for result, reference in zip(ops.act_quant(view, 64), eager.act_quant(view, 64), strict=True):
            assert torch.equal(result, reference)
    w = values(200, 12).T
    for result, reference in zip(ops.weight_quant(w, 64), eager.weight_quant(w, 64), strict=True):
        assert torch.equal(result, reference)


def test_whole_layers() -> None:
    x, w, bias = values(2, 9, 256), values(40, 256, seed=1), torch.linspace(-1, 1, 40)
    block, row = eager.weight_quant(w, 128), eager.act_quant(w, None)
    for layer in (
        lambda: ops.block_linear(x, *block, bias, 128),
        lambda: ops.row_linear(x, *row, bias, None),
        lambda: ops.row_linear(x, *row, None, 64),
    ):
        result = layer()
        with kernel_backend("reference"):
            reference = layer()
        assert (result - reference).norm() < 1e-3 * reference.norm()
