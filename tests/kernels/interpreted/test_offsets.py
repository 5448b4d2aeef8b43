"""Tensors that are longer than 2^31 elements; of their memory only the rows that are read is ever touched."""

from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels import eager, ops
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.tests.kernels.inputs import operands, values
from torch import Tensor

STRIDE = 1_500_000_000
"""Elements between rows: the third row begins past 2^31."""


def spread(x: Tensor) -> Tensor:
    """The same rows, far apart."""
    rows, columns = x.shape
    wide = torch.empty((rows - 1) * STRIDE + columns, dtype=x.dtype).as_strided((rows, columns), (STRIDE, 1))
    return wide.copy_(x)


@pytest.mark.parametrize("backend", ["triton", "triton_v2"])
@pytest.mark.parametrize("block", [None, 64])
def test_products(backend: str, block: int | None) -> None:
    a, a_scale, b, b_scale = operands(3, 3, 80, block)
    reference = eager.gemm(a, a_scale, b, b_scale, None, block, torch.float32)
    with kernel_backend(backend):
        product = ops.int8_gemm(spread(a), a_scale, spread(b), b_scale, block, torch.float32)
    assert (product - reference).abs().max() <= 2.0**-22 * reference.abs().max()


def test_quantization() -> None:
    x = values(3, 64).to(torch.float16)
    with kernel_backend("triton"):
        quantized = (*ops.act_quant(spread(x), 64), *ops.weight_quant(spread(x), 64), *ops.rotate_quant(spread(x), 16))
        reference = (*ops.act_quant(x, 64), *ops.weight_quant(x, 64), *ops.rotate_quant(x, 16))
    assert all(torch.equal(*pair) for pair in zip(quantized, reference, strict=True))
