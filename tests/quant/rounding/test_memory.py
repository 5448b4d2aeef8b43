"""Peak memory of calibrated rounding: the Hessian and one more matrix of its size."""

from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.scales import absmax
from calibrated_rounding.quant.recipe import CalibratedSettings, SvdSettings
from calibrated_rounding.quant.rounding import round_calibrated, round_svd
from calibrated_rounding.tests.quant.peak_bytes import PeakBytes

WIDTH = 1024
ROWS = 8


@pytest.fixture
def operands() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight with few rows and few input rows: beside them, a square matrix is large."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=generator), torch.randn(ROWS, WIDTH, generator=generator)


@pytest.mark.parametrize("name", ["int8_row", "float8_e4m3fn", "w4a8", "nvfp4"])
def test_calibrated_holds_two_square_matrices(name: str, operands: tuple[torch.Tensor, torch.Tensor]) -> None:
    (weight, inputs), fmt = operands, FORMATS[name]
    scale = fmt.find_scale(weight, "absmax")
    with PeakBytes() as memory:
        round_calibrated(weight, scale, fmt, inputs, CalibratedSettings(passes=1))
    square = 4 * WIDTH**2
    assert 2 * square <= memory.peak < 2.5 * square


def test_svd_ldlq_holds_two_square_matrices(operands: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, _ = operands
    fmt = FORMATS["int8_row"]
    scale = absmax(weight, fmt)
    with PeakBytes() as memory:
        round_svd(weight, scale, fmt, SvdSettings(optimizer="feedback"))
    square = 4 * WIDTH**2
    assert 2 * square <= memory.peak < 2.5 * square
