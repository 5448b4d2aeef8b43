"""Rounding in the formats of 4 and 6 bits; errors are measured on the codes that are written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calibrated_rounding.quant.formats import FORMATS, GroupedFormat
from calibrated_rounding.quant.formats.rotation import rotate
from calibrated_rounding.quant.layer.acceptance import Rounded, accept
from calibrated_rounding.quant.layer.activations import InputRows
from calibrated_rounding.quant.layer.validator import Validator
from calibrated_rounding.quant.recipe import OPTIMIZERS, SvdSettings
from calibrated_rounding.quant.rounding import round_nearest, round_svd
from calibrated_rounding.quant.rounding.grouped import round_grouped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

NAMES = ["w4a8", "w6a8", "nvfp4"]
ANY_FORMAT = pytest.mark.parametrize("name", NAMES)


def grouped(name: str) -> GroupedFormat:
    fmt = FORMATS[name]
    assert isinstance(fmt, GroupedFormat)
    return fmt


def make_weight(seed: int, rows: int, columns: int) -> Tensor:
    """A weight with a row of zeros, a group of zeros and an outlier."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    weight[0], weight[1, :16], weight[2, 5] = 0.0, 0.0, 1.0
    return weight


def make_inputs(seed: int, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=torch.Generator().manual_seed(7))
    spread = torch.arange(1, columns + 1).float() ** -0.7
    return torch.randn(rows, columns, generator=generator) * spread @ mix


def make_hessian(inputs: Tensor) -> Tensor:
    hessian = inputs.T @ inputs / len(inputs)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    return hessian


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 1000), columns=st.sampled_from([32, 96, 160]))
@settings(max_examples=25)
def test_file_decodes_to_what_was_judged(name: str, seed: int, columns: int) -> None:
    fmt, weight = grouped(name), make_weight(seed, 16, columns)
    start = fmt.find_scale(weight, "absmax")
    codes, scale = round_grouped(
        weight, start, fmt, make_hessian(make_inputs(seed, 64, columns)), lambda: None, passes=1
    )
    assert bool(torch.isin(codes, torch.tensor(fmt.order, dtype=torch.uint8)).all())
    group = scale.group.float()
    assert scale.group.dtype == torch.float8_e4m3fn
    assert bool((torch.isfinite(group) & (group > 0)).all())
    assert torch.equal(scale.channel, start.channel)
    judged = fmt.dequantize(codes, scale)
    assert torch.equal(fmt.read(fmt.pack(codes, scale)), judged)
    assert not bool(judged[0].any())


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 1000), rows=st.sampled_from([8, 40, 300]))
@settings(max_examples=25)
def test_accepted_rows_never_cost_more_than_nearest(name: str, seed: int, rows: int) -> None:
    fmt, weight = grouped(name), make_weight(seed, 16, 64)
    start = fmt.find_scale(weight, "absmax")
    learned = Rounded(
        *round_grouped(weight, start, fmt, make_hessian(make_inputs(seed, rows, 64)), lambda: None, passes=1)
    )
    nearest = Rounded(round_nearest(weight, start, fmt), start)
    held_out = InputRows(rows=make_inputs(seed + 1, 200, 64), format=fmt)
    validator = Validator(weight, held_out)
    accepted = accept(learned, nearest, fmt, validator)
    assert accepted.errors.w8a8 <= accepted.nearest.w8a8
    after, before = (
        validator.squared_errors(fmt.dequantize(r.codes, r.scale)).mean(dim=0) for r in (accepted, nearest)
    )
    assert bool((after <= before).all())


@ANY_FORMAT
def test_trained_weight_costs_less_than_half_of_nearest(name: str, trained: Tensor) -> None:
    fmt = grouped(name)
    weight, inputs = rotate(trained, 256), make_inputs(0, 1024, 256)
    start = fmt.find_scale(weight, "absmax")
    hessian = make_hessian(inputs)
    codes, scale = round_grouped(weight, start, fmt, hessian, lambda: None, passes=2)
    unseen = make_inputs(1, 512, 256)
    after, before = (
        float((unseen @ (fmt.dequantize(c, s) - weight).T).norm())
        for c, s in ((codes, scale), (round_nearest(weight, start, fmt), start))
    )
    assert after < 0.5 * before


def test_own_codebook_is_rounded_against() -> None:
    fmt, weight = grouped("w4a8"), make_weight(0, 16, 64)
    start = fmt.find_scale(weight, "absmax")
    uneven = torch.linspace(-1, 1, 16).pow(3)
    codes, scale = round_grouped(
        weight, replace(start, codebook=uneven), fmt, make_hessian(make_inputs(0, 64, 64)), lambda: None
    )
    assert scale.codebook is uneven
    groups = fmt.dequantize(codes, scale).view(16, -1, 16) / scale.row_channel[..., None]
    points = fmt.decode(uneven, scale.group.float()[..., None])
    distances = (groups[..., None] - points[:, :, None]).abs().amin(dim=-1)
    assert float(distances.max()) < 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@ANY_FORMAT
def test_svd_gains_on_grouped_grids(optimizer: str, name: str, trained: Tensor) -> None:
    if optimizer == "prodigy":
        pytest.importorskip("prodigyplus")
    fmt, weight = grouped(name), rotate(trained, 256)
    scale = fmt.find_scale(weight, "absmax")
    result = round_svd(weight, scale, fmt, SvdSettings(optimizer=optimizer, iterations=100))
    assert result.error < 0.85 * result.nearest_error
    assert bool(torch.isin(result.codes, torch.tensor(fmt.order, dtype=torch.uint8)).all())


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_neighbours_enclose_weights(name: str, seed: int) -> None:
    fmt, weight = grouped(name), make_weight(seed, 8, 64)
    scale = fmt.find_scale(weight, "absmax")
    lower, upper = fmt.neighbours(weight, scale)
    nearest = fmt.dequantize(fmt.round(weight, scale), scale)
    slack = 1e-6 * weight.abs()
    inside = (lower <= weight + slack) & (weight - slack <= upper)
    assert bool((inside | (lower == upper)).all())
    assert torch.allclose(torch.where(weight - lower < upper - weight, lower, upper), nearest, atol=1e-6)
