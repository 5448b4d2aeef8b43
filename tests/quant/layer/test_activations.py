"""Input rows quantized as ComfyUI's 8-bit products quantize them, against ComfyUI's own code."""

from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.rotation import rotate
from calibrated_rounding.quant.layer.activations import InputRows
from comfy_kitchen.backends.eager import quantization as host
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def drawn(rows: int = 64, width: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=generator) * torch.rand(width, generator=generator) * 3


@pytest.mark.parametrize("name", ["int8_tensor", "int8_row"])
def test_int8_inputs_are_scaled_by_row(name: str) -> None:
    rows = drawn()
    codes, scale = host.quantize_int8_rowwise(rows)
    assert torch.equal(FORMATS[name].round_inputs(rows), codes.float() * scale)


def test_rotated_int8_inputs_are_rotated_first() -> None:
    rows = drawn()
    inputs = InputRows.prepare(rows, 256, FORMATS["int8_convrot"], 64)
    codes, scale = host.quantize_int8_rowwise(rotate(rows, 64))
    assert torch.equal(inputs.rows, rotate(rows, 64))
    assert torch.equal(inputs.quantized, codes.float() * scale)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("scale", [None, 0.25, 3.0])
def test_fp8_inputs_have_the_static_scale_or_one(name: str, scale: float | None) -> None:
    rows, fmt = drawn(), FORMATS[name]
    used = torch.tensor(scale or 1.0)
    wanted = host.quantize_per_tensor_fp8(rows, used, fmt.grid.dtype).float() * used
    torch.testing.assert_close(fmt.round_inputs(rows, scale), wanted, rtol=1e-6, atol=0)


def test_fp8_inputs_saturate_without_a_static_scale() -> None:
    rows, fmt = drawn() * 1000, FORMATS["float8_e4m3fn"]
    assert float(fmt.round_inputs(rows).abs().max()) == 448.0
    torch.testing.assert_close(fmt.round_inputs(rows, 64.0), rows, rtol=0.07, atol=64.0)


@pytest.mark.parametrize("scale", [None, 1e-4, 3e-3])
def test_nvfp4_inputs_are_scaled_as_comfy_kitchen_does(scale: float | None) -> None:
    """Without a static scale, by the largest input; with one, larger inputs saturate."""
    rows = drawn(width=64)
    used = torch.tensor(scale) if scale else rows.abs().amax() / (448.0 * 6.0)
    codes, scales = host.quantize_nvfp4(rows, used)
    wanted = host.dequantize_nvfp4(codes, used, scales, torch.float32)
    torch.testing.assert_close(FORMATS["nvfp4"].round_inputs(rows, scale), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_full_precision_keeps_inputs_in_float(name: str) -> None:
    inputs = InputRows.prepare(drawn(), 256, FORMATS[name], None, full_precision=True)
    assert torch.equal(inputs.quantized, inputs.rows)


@pytest.mark.parametrize(("name", "block"), [("mxfp8", 32), ("int8_blockwise", 128), ("int8_blockwise_64", 64)])
def test_block_formats_scale_input_runs(name: str, block: int) -> None:
    rows = drawn()
    whole = FORMATS[name].round_inputs(rows)
    rows[:, block:] *= 1000
    assert torch.equal(FORMATS[name].round_inputs(rows)[:, :block], whole[:, :block])


def test_inputs_are_padded_to_the_stored_width() -> None:
    inputs = InputRows.prepare(drawn(8, 40), 64, FORMATS["mxfp8"], None)
    assert inputs.rows.shape == inputs.quantized.shape == (8, 64)
    assert not inputs.quantized[:, 40:].any()


# NVFP4 rounds its scales as well, so the largest value of a group need not be a grid point of the second rounding.
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "nvfp4"])
@given(values=arrays("float32", (3, 64), elements=st.floats(-1e4, 1e4, width=32)))
def test_rounding_twice_is_rounding_once(name: str, values: object) -> None:
    fmt = FORMATS[name]
    once = fmt.round_inputs(torch.from_numpy(values))
    torch.testing.assert_close(fmt.round_inputs(once), once, rtol=1e-6, atol=1e-30)


# The scale of all inputs together, which NVFP4 has, is a part's own.
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "nvfp4"])
def test_split_keeps_rows_and_outputs_paired(name: str) -> None:
    inputs = InputRows.prepare(drawn(10), 256, FORMATS[name], None)
    first, rest = inputs.split(0.25)
    assert (len(first), len(rest)) == (2, 8)
    assert torch.equal(torch.cat([first.quantized, rest.quantized]), inputs.quantized)
    assert len(inputs.split(0.001)[0]) == 1
