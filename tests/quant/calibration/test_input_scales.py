from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.calibration.input_scales import INPUT_SCALE_METHODS, input_scale
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.formats import FORMATS

E4M3 = FORMATS["float8_e4m3fn"]


def known(rows: torch.Tensor) -> InputStatistics:
    return InputStatistics(rows=rows, absmax=float(rows.abs().max()))


def error(scale: torch.Tensor, rows: torch.Tensor) -> float:
    return float((E4M3.grid.encode(rows / scale).float() * scale - rows).norm())


def test_absmax_maps_the_largest_input_to_the_last_point() -> None:
    rows = torch.tensor([[1.0, -896.0]])
    assert float(input_scale("absmax", known(rows), E4M3)) == 2.0


def test_a_percentile_leaves_one_outlier_out() -> None:
    rows = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    rows[0, 0] = 1e4
    assert float(input_scale("percentile", known(rows), E4M3)) < 10 / 448
    assert float(input_scale("absmax", known(rows), E4M3)) == pytest.approx(1e4 / 448)


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_least_error_is_never_worse_than_absmax(spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(256, 64, generator=generator) * torch.rand(64, generator=generator) ** spread
    found = {name: error(input_scale(name, known(rows), E4M3), rows) for name in INPUT_SCALE_METHODS}
    assert found["mse"] <= found["absmax"]


@pytest.mark.parametrize("method", INPUT_SCALE_METHODS)
def test_without_rows_the_absolute_maximum_counts(method: str) -> None:
    assert float(input_scale(method, InputStatistics(absmax=448.0), E4M3)) == 1.0


@pytest.mark.parametrize("method", INPUT_SCALE_METHODS)
def test_inputs_that_are_all_zero_have_a_scale_that_divides(method: str) -> None:
    assert float(input_scale(method, known(torch.zeros(4, 4)), E4M3)) > 0
