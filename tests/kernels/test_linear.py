"""A block-wise linear layer where Triton does not run."""

from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels import eager, ops
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.kernels.eager import quantize
from calibrated_rounding.tests.kernels.inputs import values
from calibrated_rounding.tests.pretend.cuda import PretendCuda
from calibrated_rounding.tests.pretend.tensor import DEVICE

OUTPUTS, INPUTS, ROWS = 1536, 256, 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["auto", "eager", "triton"])
def test_weight_is_dequantized_and_multiplied(dtype: torch.dtype, backend: str) -> None:
    x, w, bias = values(2, 9, 300, dtype=dtype), ops.weight_quant(values(200, 300, seed=1), 128), values(1, 200)[0]
    with kernel_backend(backend):
        result = ops.block_linear(x, *w, bias, 128)
    floats = ops.weight_dequant(*w, 128, dtype)
    expected = torch.nn.functional.linear(x.view(-1, 300), floats, bias.to(dtype)).view(2, 9, 200)
    assert torch.equal(result, expected)


def test_reference_multiplies_in_int8() -> None:
    x, w = values(9, 300), ops.weight_quant(values(200, 300, seed=1), 64)
    with kernel_backend("reference"):
        result = ops.block_linear(x, *w, None, 64)
    assert torch.equal(result, eager.gemm(*eager.act_quant(x, 64), *w, None, 64, torch.float32))


@pytest.mark.parametrize("transposed", [False, True])
def test_layer_takes_memory_of_its_weight(transposed: bool) -> None:
    """Beside inputs and outputs a layer holds its weight in 16 bits, and a part of it in float32."""
    x, w = values(ROWS, INPUTS, dtype=torch.bfloat16), ops.weight_quant(values(OUTPUTS, INPUTS, seed=1), 128)
    codes, scale = (t.T.contiguous().T for t in w) if transposed else w
    with PretendCuda() as cuda:
        operands = [t.to(DEVICE) for t in (x, codes, scale)]
        before = cuda.ledger.memory.live
        result = eager.dequantized_linear(operands[0], operands[1], operands[2], None, 128)
    assert result.shape == (ROWS, OUTPUTS)
    part = 4 * min(quantize.CHUNK_ELEMENTS, OUTPUTS * INPUTS)
    output, weight = 2 * ROWS * OUTPUTS, 2 * OUTPUTS * INPUTS
    assert cuda.ledger.memory.peak - before <= max(output + weight, weight + 3 * part), cuda.ledger
    assert cuda.ledger.wait_count == 0, cuda.ledger


@pytest.mark.parametrize(("n", "k"), [(5, 3), (300, 200), (128, 128), (129, 1), (64, 513)])
@pytest.mark.parametrize("block", [64, 128])
def test_weight_dequantized_in_parts_has_same_bits(n: int, k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scale = ops.weight_quant(values(n, k), block)
    wide = scale.repeat_interleave(block, 0)[:n].repeat_interleave(block, 1)[:, :k]
    expected = (codes.float() * wide).to(torch.bfloat16)
    for elements in (1, 128 * k, 1 << 22):
        monkeypatch.setattr(quantize, "CHUNK_ELEMENTS", elements)
        assert torch.equal(ops.weight_dequant(codes, scale, block, torch.bfloat16), expected)
