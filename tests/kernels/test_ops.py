from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from calibrated_rounding.kernels import backend, ops
from calibrated_rounding.kernels.errors import KernelError
from calibrated_rounding.tests.kernels.inputs import operands, values
from torch import Tensor

OPS = torch.ops.calibrated_rounding
X, W, BIAS = values(3, 70), values(40, 70, seed=1), torch.linspace(-1, 1, 40)
QUANTIZED = ops.act_quant(X, 64)
PRODUCTS = {block: operands(3, 40, 70, block) for block in (None, 64)}

CALLS = {
    "act_quant": (OPS.act_quant, (X, 64)),
    "act_quant row": (OPS.act_quant, (X, None)),
    "act_dequant": (OPS.act_dequant, (*QUANTIZED, 64, torch.bfloat16)),
    "weight_quant": (OPS.weight_quant, (W, 64)),
    "weight_dequant": (OPS.weight_dequant, (*ops.weight_quant(W, 64), 64, torch.float16)),
    "int8_gemm": (OPS.int8_gemm, (*PRODUCTS[64], 64, torch.bfloat16)),
    "int8_gemm row": (OPS.int8_gemm, (*PRODUCTS[None], None, torch.float32)),
    "int8_addmm": (OPS.int8_addmm, (BIAS, *PRODUCTS[64], 64, torch.float32)),
    "int8_gemm_quant": (OPS.int8_gemm_quant, (*PRODUCTS[64], 64)),
    "int8_addmm_quant": (OPS.int8_addmm_quant, (BIAS, *PRODUCTS[None], None)),
    "int8_gelu": (OPS.int8_gelu, (*QUANTIZED, 64, "tanh")),
    "block_linear": (OPS.block_linear, (X[None], *ops.weight_quant(W, 64), BIAS, 64)),
    "block_linear without bias": (OPS.block_linear, (X, *ops.weight_quant(W, 64), None, 64)),
    "rotate_quant": (OPS.rotate_quant, (values(3, 128), 64)),
}


@pytest.mark.parametrize("name", CALLS)
def test_ops_pass_opcheck(name: str) -> None:
    op, arguments = CALLS[name]
    torch.library.opcheck(op.default, (*arguments, "auto"))


def layers(x: Tensor) -> Tensor:
    """Everything, one after the other."""
    block, row = ops.weight_quant(W, 64), ops.act_quant(W, None)
    y = ops.block_linear(x, *block, BIAS, 64) + ops.row_linear(x, *row, None, None)
    codes, scale = ops.act_quant(x, 64)
    hidden = ops.int8_gelu(*ops.int8_addmm_quant(BIAS, codes, scale, *block, 64), 64, "none")
    return y + ops.act_dequant(*hidden, 64, x.dtype) + ops.rotate_quant(y[:, :16].contiguous(), 16)[1]


def test_compiled_layers_match_eager() -> None:
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 5):
        x = values(rows, 70)
        assert torch.equal(compiled(x), layers(x))


def test_compiled_function_follows_backend() -> None:
    compiled = torch.compile(lambda x: ops.act_quant(x, None), fullgraph=True, backend="eager")
    compiled(X)
    with backend.kernel_backend("eager"):
        compiled(X)


def test_second_import_shares_ops() -> None:
    root = Path(backend.__file__).parents[1]
    spec = importlib.util.spec_from_file_location(
        "pack_again", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["pack_again"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules["pack_again"])
        again = importlib.import_module("pack_again.kernels.ops")
        assert again is not ops
        assert torch.equal(again.act_quant(X, 64)[0], QUANTIZED[0])
        assert torch.equal(ops.act_quant(X, 64)[0], QUANTIZED[0])
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "pack_again"]:
            del sys.modules[name]


A, A_SCALE, B, B_SCALE = PRODUCTS[64]
ROW = PRODUCTS[None]
MISTAKES: dict[str, Callable[[], object]] = {
    "Scale block 32": lambda: ops.act_quant(X, 32),
    "int64": lambda: ops.act_quant(X.long(), 64),
    "float32 \\[3, 2\\] here": lambda: ops.act_dequant(*ops.act_quant(X, None), 64, torch.float32),
    "Weights are": lambda: ops.weight_quant(X[0], 64),
    "inner dimension": lambda: ops.int8_gemm(A[:, :64], A_SCALE[:, :1], B, B_SCALE, 64, torch.float32),
    "Weight scales": lambda: ops.int8_gemm(A, A_SCALE, B, B_SCALE[:, :1], 64, torch.float32),
    "\\[40, 1\\]": lambda: ops.int8_gemm(*ROW[:3], torch.ones(40), None, torch.float32),
    "bias for 40": lambda: ops.int8_addmm(BIAS[:9], *ROW, None, torch.float32),
    "overflow": lambda: ops.int8_gemm(
        *2 * (torch.zeros(1, 131_072, dtype=torch.int8), torch.ones(1, 1)), None, torch.float32
    ),
    "\\[3, 64\\] and \\[40, 70\\]": lambda: ops.block_linear(X[:, :64], *ops.weight_quant(W, 64), None, 64),
    "does not divide": lambda: ops.rotate_quant(X, 16),
    "Rotation group 32": lambda: ops.rotate_quant(X, 32),
    "'fast'": lambda: ops.int8_gelu(*QUANTIZED, 64, "fast"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_wrong_operands_are_refused(words: str) -> None:
    with pytest.raises(KernelError, match=words) as caught:
        MISTAKES[words]()
    assert "\n" not in str(caught.value)
