"""Formats of two levels of scales, against comfy-kitchen's own quantizers, bit for bit."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import comfy_kitchen
import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_tensor
from calibrated_rounding.quant.formats import FORMATS, GroupedFormat, GroupScales
from calibrated_rounding.quant.formats.codebook import NORMAL
from calibrated_rounding.quant.formats.dequantize import dequantize_layer
from calibrated_rounding.quant.formats.grouped import nearest_places
from calibrated_rounding.quant.formats.rotation import rotate

GROUPED = [name for name, fmt in FORMATS.items() if isinstance(fmt, GroupedFormat)]
BITS = pytest.mark.parametrize(("name", "bits"), [("w4a8", 4), ("w6a8", 6)])


def find_host() -> Any:
    """comfy-kitchen's functions on tensors; skips the test where it has no 6 bits, and may round 4 bits otherwise."""
    host = importlib.import_module("comfy_kitchen.tensor")
    quantize = getattr(host, "quantize_w4a8_int8_weight", None)
    if quantize is None or "bits" not in inspect.signature(quantize).parameters:
        pytest.skip("comfy-kitchen is older than 0.2.36")
    return host


def grouped(name: str) -> GroupedFormat:
    fmt = FORMATS[name]
    assert isinstance(fmt, GroupedFormat)
    return fmt


def draw(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02


def pack(weight: torch.Tensor, name: str, group: int | None = None) -> dict[str, torch.Tensor]:
    """A weight in a format, by nearest rounding."""
    fmt = grouped(name)
    rows, columns = fmt.padded_shape((weight.shape[0], weight.shape[1]))
    padded = torch.nn.functional.pad(weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0]))
    stored = rotate(padded, group) if group else padded
    scale = fmt.find_scale(stored, "absmax")
    return fmt.pack(fmt.round(stored, scale), scale)


def equal_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@BITS
@pytest.mark.parametrize("group", [16, 64, 256])
@pytest.mark.parametrize("kind", ["trained", "zero rows", "outliers", "tiny", "large"])
def test_nearest_is_comfy_kitchens_bit_for_bit(
    name: str, bits: int, group: int, kind: str, trained: torch.Tensor
) -> None:
    weight = trained.clone()
    if kind == "zero rows":
        weight[3], weight[5, :16] = 0, 0
    elif kind == "outliers":
        weight[:, 7] *= 40
    elif kind in ("tiny", "large"):
        weight *= {"tiny": 1e-9, "large": 1e9}[kind]
    codes, group_scale, channel, correction, codebook = find_host().quantize_w4a8_int8_weight(
        weight, convrot_groupsize=group, bits=bits
    )
    ours = pack(weight, name, group)
    assert correction is None
    assert torch.equal(ours["weight"], codes)
    assert equal_bytes(ours["weight_s_rel"], group_scale)
    assert torch.equal(ours["weight_s_channel"], channel)
    assert codebook is None if bits == 6 else torch.equal(ours["weight_codebook"], codebook)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", GROUPED)
def test_16_bit_weights_are_rounded_as_in_float32(name: str, dtype: torch.dtype) -> None:
    weight = draw(64, 256).to(dtype)
    half, full = (quantize_tensor(w, Recipe(format=name, profile="generic"))[0] for w in (weight, weight.float()))
    assert half.keys() == full.keys()
    assert all(equal_bytes(half[key], full[key]) for key in half)


@BITS
def test_comfy_kitchen_rounds_16_bit_weights_worse(name: str, bits: int) -> None:
    """It computes in the weight's dtype, so that its scales of bfloat16 weights have 8 bits."""
    weight = draw(256, 512).to(torch.bfloat16)
    stored, host = rotate(weight.float(), 256), find_host()
    codes, group_scale, channel, _, codebook = host.quantize_w4a8_int8_weight(weight, convrot_groupsize=256, bits=bits)
    tensors = {"weight": codes, "weight_s_rel": group_scale, "weight_s_channel": channel}
    theirs = tensors if codebook is None else tensors | {"weight_codebook": codebook}
    errors = [float((grouped(name).read(t) - stored).norm()) for t in (pack(weight.float(), name, 256), theirs)]
    assert errors[0] < errors[1] < 1.05 * errors[0]


@pytest.mark.parametrize("shape", [(64, 256), (3000, 2048)])
def test_heavy_tails_get_comfy_kitchens_own_codebook(shape: tuple[int, int]) -> None:
    spikes = draw(*shape)
    spikes[:, ::16] += 1
    weight = rotate(spikes, 16)
    codes, group_scale, _, _, codebook = find_host().quantize_w4a8_int8_weight(weight, convrot_groupsize=16)
    ours = pack(weight, "w4a8", 16)
    assert not torch.equal(ours["weight_codebook"], torch.tensor(NORMAL))
    assert torch.equal(ours["weight_codebook"], codebook)
    assert torch.equal(ours["weight"], codes)
    assert equal_bytes(ours["weight_s_rel"], group_scale)


@BITS
def test_wide_layers_are_the_same_in_chunks(name: str, bits: int) -> None:
    weight = draw(1100, 4096)
    codes, group_scale, channel, _, _ = find_host().quantize_w4a8_int8_weight(weight, bits=bits)
    ours = pack(weight, name, 256)
    assert torch.equal(ours["weight"], codes)
    assert equal_bytes(ours["weight_s_rel"], group_scale)
    assert torch.equal(ours["weight_s_channel"], channel)


@pytest.mark.parametrize("shape", [(512, 256), (40, 48), (33, 100)])
def test_nvfp4_is_comfy_kitchens_bit_for_bit(shape: tuple[int, int], trained: torch.Tensor) -> None:
    weight = trained[: shape[0], : shape[1]].clone()
    weight[0, :16], weight[1, 16:32] = 0, weight[1, 16:32] * 1e-6
    scale = weight.abs().amax() / (448 * 6)
    codes, group_scale = comfy_kitchen.quantize_nvfp4(weight, scale, pad_16x=True)
    ours = pack(weight, "nvfp4")
    assert torch.equal(ours["weight"], codes)
    assert equal_bytes(ours["weight_scale"], group_scale)
    assert torch.equal(ours["weight_scale_2"], scale)


def test_nvfp4_rounds_halves_as_comfy_kitchen() -> None:
    values = torch.arange(-64, 64) / 8
    weight = torch.cat((torch.full((8, 1), 6.0).repeat_interleave(2, 1), values.clamp(-6, 6).view(8, 16)), dim=1)
    weight = torch.nn.functional.pad(weight, (14, 0))
    scale = weight.abs().amax() / (448 * 6)
    codes, _ = comfy_kitchen.quantize_nvfp4(weight, scale, pad_16x=True)
    assert torch.equal(pack(weight, "nvfp4")["weight"], codes)


@BITS
def test_dequantized_weight_is_comfy_kitchens(name: str, bits: int, trained: torch.Tensor) -> None:
    packed, fmt = pack(trained, name, 64), grouped(name)
    wanted = find_host().dequantize_w4a8_int8_weight(
        packed["weight"],
        packed["weight_s_rel"],
        packed["weight_s_channel"],
        codebook=packed.get("weight_codebook"),
        convrot_groupsize=64,
        output_dtype=torch.float32,
    )
    assert torch.equal(dequantize_layer(*fmt.unpack(packed), fmt, 64, (512, 256)), wanted)


def test_dequantized_nvfp4_is_comfy_kitchens(trained: torch.Tensor) -> None:
    packed, fmt = pack(trained, "nvfp4"), grouped("nvfp4")
    wanted = comfy_kitchen.dequantize_nvfp4(
        packed["weight"], packed["weight_scale_2"], packed["weight_scale"], torch.float32
    )
    torch.testing.assert_close(fmt.read(packed), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", GROUPED)
def test_nearest_codes_of_grid_points_are_their_own(name: str) -> None:
    fmt = grouped(name)
    weight = draw(8, 64)
    scale = fmt.find_scale(weight, "absmax")
    points = fmt.dequantize(fmt.round(weight, scale), scale)
    assert torch.equal(fmt.dequantize(fmt.round(points, scale), scale), points)


@pytest.mark.parametrize("name", GROUPED)
def test_grid_holds_what_codes_decode_to(name: str) -> None:
    fmt = grouped(name)
    weight = draw(8, 64)
    scale = fmt.find_scale(weight, "absmax")
    grid = fmt.grid(scale)
    assert tuple(grid.shape) == (8, 4, len(fmt.order)) and bool((grid.diff() >= 0).all())
    for place, code in enumerate(fmt.order):
        codes = torch.full((8, 64), code, dtype=torch.uint8)
        wanted = (grid[:, :, place].repeat_interleave(16, 1)) * scale.row_channel
        assert torch.equal(fmt.dequantize(codes, scale), wanted)


@pytest.mark.parametrize("name", GROUPED)
def test_search_lowers_the_error_of_every_group(name: str, trained: torch.Tensor) -> None:
    fmt = grouped(name)

    def errors(method: str) -> torch.Tensor:
        scale = fmt.find_scale(trained, method)
        error = (fmt.dequantize(fmt.round(trained, scale), scale) - trained).double().square()
        return error.view(512, -1, 16).sum(-1)

    found, given = errors("mse"), errors("absmax")
    assert bool((found <= given * (1 + 1e-5) + 1e-12).all())
    assert float(found.sum()) < 0.99 * float(given.sum())


@pytest.mark.parametrize("name", GROUPED)
def test_zeros_come_back_exactly_everywhere(name: str) -> None:
    packed = pack(torch.zeros(32, 64), name)
    assert torch.equal(grouped(name).read(packed), torch.zeros(32, 64))


@pytest.mark.parametrize("name", GROUPED)
def test_sizes_are_what_the_formats_promise(name: str) -> None:
    packed = pack(draw(128, 256), name)
    nbytes = packed["weight"].nbytes + packed[grouped(name).group_name].nbytes
    assert nbytes / (128 * 256) == {"w4a8": 0.5625, "w6a8": 0.8125, "nvfp4": 0.5625}[name]


def test_rows_of_two_roundings_are_put_together() -> None:
    fmt, weight = grouped("w4a8"), draw(6, 32)
    a, b = fmt.find_scale(weight, "absmax"), fmt.find_scale(weight, "mse")
    mixed = a.where(torch.tensor([True, False] * 3), b)
    for row in range(6):
        part, chosen = slice(row, row + 1), (a, b)[row % 2]
        assert equal_bytes(mixed.rows(part).group, chosen.rows(part).group)
        assert torch.equal(mixed.rows(part).channel, chosen.rows(part).channel)


def test_missing_codebook_means_whole_numbers() -> None:
    fmt, packed = grouped("w4a8"), pack(draw(4, 32), "w4a8")
    del packed["weight_codebook"]
    codes, scale = fmt.unpack(packed)
    assert isinstance(scale, GroupScales)
    wanted = (codes.float() - 8).view(4, 2, 16) * scale.group.float()[..., None]
    assert torch.equal(fmt.dequantize(codes, scale), wanted.round().clamp(-127, 127).flatten(1) * scale.row_channel)


def test_coinciding_points_are_told_apart_by_side() -> None:
    points = torch.tensor([-1.0, 0.0, 0.0, 2.0])
    assert nearest_places(points, torch.tensor([-0.4, 0.0, 0.6, 1.0, 1.1, 9.0])).tolist() == [1, 1, 2, 2, 3, 3]
