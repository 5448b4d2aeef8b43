"""The block-wise INT8 layout as comfy-kitchen's QuantizedTensor uses it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from calibrated_rounding.kernels import layouts, ops
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.kernels.layouts import NAME, BlockWiseINT8Layout, operations
from calibrated_rounding.quant import Recipe, quantize_tensor
from comfy_kitchen.tensor import QuantizedTensor, base, get_layout_class
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear

BLOCKS = pytest.mark.parametrize("block", [64, 128])
MODES = {"inference": torch.inference_mode, "no grad": torch.no_grad, "grad": torch.enable_grad}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized(weight: Tensor, block: int = 128) -> QuantizedTensor:
    return QuantizedTensor.from_float(weight, NAME, block_size=block)


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    parts = [(a._qdata, b._qdata), (a._params.scale, b._params.scale)]
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in parts) and a.shape == b.shape


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The operations that were logged as leaving the INT8 path; empty at first."""
    monkeypatch.setattr(operations, "_warned", set())
    return operations._warned


def test_registering_is_a_call() -> None:
    code = (
        "from calibrated_rounding.kernels import layouts, ops, ldlq; from comfy_kitchen.tensor import base\n"
        "print(layouts.NAME in base.LAYOUTS); layouts.register(); print(base.LAYOUTS[layouts.NAME].__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "BlockWiseINT8Layout"]
    assert get_layout_class(NAME) is BlockWiseINT8Layout


def test_layout_name_of_another_pack_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("BlockWiseINT8Layout", (), {})
    monkeypatch.setitem(base.LAYOUTS, NAME, other)
    layouts.register()
    assert get_layout_class(NAME) is other
    assert not layouts.is_own()


@BLOCKS
def test_quantizes_as_the_engine_does(block: int) -> None:
    weight = randn(256, 384) * torch.logspace(-4, 0, 256)[:, None]
    weight[:block, :block] = 0
    name = "int8_blockwise" if block == 128 else "int8_blockwise_64"
    ours, dequantized = quantize_tensor(weight, Recipe(format=name, profile="generic"))
    result = quantized(weight, block)
    assert result.state_dict("weight").keys() == {"weight", "weight_scale"}
    for key, tensor in result.state_dict("weight").items():
        assert torch.equal(tensor, ours[key])
    assert torch.equal(result.dequantize(), dequantized)


@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    tokens=st.integers(1, 40),
    block=st.sampled_from([64, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    integer=st.booleans(),
)
def test_product_matches_dequantized_weight(
    rows: int, columns: int, tokens: int, block: int, dtype: torch.dtype, bias: bool, integer: bool
) -> None:
    """In INT8 (`reference`) inputs are rounded; without Triton they keep their precision."""
    weight, x = quantized(randn(rows, columns, dtype=dtype), block), randn(tokens, columns, seed=1, dtype=dtype)
    added = randn(rows, seed=2, dtype=dtype) if bias else None
    with kernel_backend("reference" if integer else "auto"):
        result = linear(x, weight, added)
    wide = ops.act_dequant(*ops.act_quant(x, block), block, torch.float32) if integer else x.float()
    floats = weight.dequantize().float()
    expected = linear(wide, floats, None if added is None else added.float())
    assert result.dtype == dtype
    precision = 0.02 if dtype == torch.bfloat16 else 0.003
    # Terms may cancel, and each is as precise as the dtype.
    size = float((wide.abs() @ floats.abs().T).max())
    torch.testing.assert_close(result.float(), expected, rtol=precision, atol=precision * max(size, 1.0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(256,), (5, 256), (2, 3, 256), (0, 256)])
@pytest.mark.parametrize("bias", [True, False])
def test_every_linear_call_reaches_the_kernel(mode: str, shape: tuple[int, ...], bias: bool, warned: set[str]) -> None:
    """Under inference mode it is one operation, else `t` with `mm`, `addmm` or, for one vector, `mv`."""
    weight, x = quantized(randn(384, 256)), randn(*shape, seed=1)
    added = randn(384, seed=2) if bias else None
    product = ops.block_linear(x.view(-1, 256), weight._qdata, weight._params.scale, added, 128)
    expected = product.view(*shape[:-1], 384)
    with MODES[mode]():
        result = linear(x, weight, added)
    if len(shape) > 1 or mode == "inference":
        assert torch.equal(result, expected)
        assert warned == set()
    else:
        torch.testing.assert_close(result, expected, rtol=0.1, atol=0.5)


def test_products_with_transposed_and_plain_matrix(warned: set[str]) -> None:
    weight, x = quantized(randn(384, 256)), randn(7, 256, seed=1)
    expected = linear(x, weight)
    assert torch.equal(torch.mm(x, weight.t()), expected)
    assert torch.equal(x @ weight.transpose(0, 1), expected)
    assert torch.equal(torch.addmm(randn(384, seed=2), x, weight.t()), linear(x, weight, randn(384, seed=2)))
    right = QuantizedTensor.from_float(weight.dequantize().t().contiguous(), NAME)
    assert torch.equal(torch.mm(x, right), expected)
    assert warned == set()


def test_gradients_reach_the_input() -> None:
    weight, x = quantized(randn(384, 256)), randn(7, 256, seed=1).requires_grad_()
    upstream = randn(7, 384, seed=2)
    (linear(x, weight, randn(384, seed=3)) * upstream).sum().backward()
    expected = upstream @ weight.dequantize()
    assert x.grad is not None
    assert float((x.grad - expected).norm() / expected.norm()) < 0.02


@given(rows=st.integers(1, 300), columns=st.integers(1, 300), block=st.sampled_from([64, 128]))
def test_transposing_carries_the_scale_along(rows: int, columns: int, block: int) -> None:
    weight = quantized(randn(rows, columns), block)
    for turned in (weight.t(), weight.transpose(0, 1), weight.transpose(-1, -2)):
        assert turned.shape == (columns, rows)
        assert torch.equal(turned.dequantize(), weight.dequantize().t())
        assert same(turned.t(), weight)
        stored = turned.state_dict("w")
        assert all(tensor.is_contiguous() for tensor in stored.values())
        assert torch.equal(stored["w"], weight._qdata.t())


@pytest.mark.parametrize(
    ("shape", "whole"),
    [((384, 256), True), ((-1, 256), True), ((3, 128, 256), True), ((1, 384, 256), True), ((2, 192, 256), False)],
)
def test_views_along_blocks_stay_quantized(shape: tuple[int, ...], whole: bool, warned: set[str]) -> None:
    weight = quantized(randn(384, 256))
    for view in (weight.view(shape), weight.reshape(shape)):
        plain = view.dequantize() if isinstance(view, QuantizedTensor) else view
        assert isinstance(view, QuantizedTensor) is whole
        assert torch.equal(plain, weight.dequantize().reshape(shape))
    assert bool(warned) is not whole
    if whole:
        assert same(view.reshape(384, 256), weight)


def test_moving_copying_casting_keep_codes() -> None:
    weight = quantized(randn(384, 256), 64)
    for moved in (weight.clone(), weight.detach(), weight.contiguous(), weight.to("cpu"), weight.to("cpu", copy=True)):
        assert same(moved, weight)
    cast = weight.to(torch.bfloat16)
    assert cast.dtype == cast.dequantize().dtype == torch.bfloat16
    assert torch.equal(cast._qdata, weight._qdata)
    other = quantized(randn(384, 256, seed=5), 64)
    target = torch.empty_like(weight)
    assert target.copy_(other) is target
    assert same(target, other)
    assert not same(target, weight)


def test_flatten_unflatten_roundtrip() -> None:
    weight = quantized(randn(384, 256), 64)
    names, context = weight.__tensor_flatten__()
    inner = {name: getattr(weight, name) for name in names}
    assert all(type(tensor) is Tensor for tensor in inner.values())
    assert len(inner) == 2
    again = QuantizedTensor.__tensor_unflatten__(inner, context, weight.shape, weight.stride())
    assert same(again, weight)
    assert again._params == weight._params


@pytest.mark.parametrize("seed", [None, 0, 17])
@BLOCKS
def test_requantized_tensors_keep_layout(seed: int | None, block: int) -> None:
    weight = quantized(randn(384, 256, dtype=torch.bfloat16), block)
    patched = weight.dequantize().float() + 0.1
    kept = patched.clone()
    again = weight.requantize_from_float(patched, scale="recalculate", stochastic_rounding=seed, inplace_ops=True)
    assert torch.equal(patched, kept)
    assert (again._qdata.shape, again._params.scale.shape) == (weight._qdata.shape, weight._params.scale.shape)
    assert (again._qdata.dtype, again._params.scale.dtype) == (torch.int8, torch.float32)
    assert again._params.block_size == block
    step = again._params.scale.repeat_interleave(block, 0).repeat_interleave(block, 1)
    limit = 1.0001 if seed else 0.5001
    assert bool(((again.dequantize() - patched).abs() <= limit * step).all())


def test_stochastic_rounding_keeps_mean_and_seed() -> None:
    weight = randn(128, 128)
    draws = [QuantizedTensor.from_float(weight, NAME, stochastic_rounding=seed) for seed in range(1, 201)]
    scale = draws[0]._params.scale
    mean = torch.stack([draw.dequantize() for draw in draws]).mean(0)
    assert float((mean - weight).abs().max() / scale) < 0.2  # 0.035 is the standard deviation of such a mean
    assert same(draws[4], QuantizedTensor.from_float(weight, NAME, stochastic_rounding=5))
    assert not same(draws[4], draws[5])


def test_explicit_scales_are_used() -> None:
    weight, scale = randn(128, 256), torch.tensor([[0.5, 0.25]])
    result = QuantizedTensor.from_float(weight, NAME, scale=scale)
    assert torch.equal(result._params.scale, scale)
    assert torch.equal(result._qdata[:, :128], (weight[:, :128] / 0.5).round().to(torch.int8))


def test_only_matrices_are_quantized() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3, 4\]"):
        quantized(randn(2, 3, 4))


def test_other_operations_dequantize_and_warn_once(warned: set[str], caplog: pytest.LogCaptureFixture) -> None:
    weight = quantized(randn(384, 256))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(weight + 1, weight.dequantize() + 1)
            assert torch.equal(torch.cat([weight, weight]), torch.cat([weight.dequantize()] * 2))
            torch.testing.assert_close(
                torch.addmm(torch.ones(7, 384), randn(7, 256), weight.t()),
                torch.addmm(torch.ones(7, 384), randn(7, 256), weight.dequantize().t()),
            )
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert all("floating point" in message for message in messages)
    assert [
        name for name in ("aten.add.", "aten.cat.", "aten.addmm.") if not any(name in text for text in messages)
    ] == []


def test_quantized_input_is_dequantized() -> None:
    weight, x = quantized(randn(384, 256)), quantized(randn(128, 256, seed=1))
    assert torch.equal(linear(x, weight), linear(x.dequantize(), weight))


class Layer(torch.nn.Module):
    def __init__(self, weight: QuantizedTensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = torch.nn.Parameter(torch.ones(weight.shape[0]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(linear(x, self.weight, self.bias))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("mode", ["inference", "no grad"])
def test_the_compiler_sees_one_graph(backend: str, mode: str) -> None:
    torch._dynamo.reset()
    with MODES[mode]():
        layer, x = Layer(quantized(randn(384, 256))), randn(2, 3, 256, seed=1)
        compiled = torch.compile(layer, backend=backend, fullgraph=True)
        assert torch.equal(compiled(x), layer(x))
