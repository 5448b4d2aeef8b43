from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.calibration.input_scales import HEADROOM, INPUT_SCALE_METHODS, measure_input_scale
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.formats import FORMATS, Format

E4M3, NVFP4 = FORMATS["float8_e4m3fn"], FORMATS["nvfp4"]
STATIC = pytest.mark.parametrize("fmt", [E4M3, NVFP4], ids=lambda fmt: fmt.name)


def known(rows: torch.Tensor) -> InputStatistics:
    return InputStatistics(rows=rows, absmax=float(rows.abs().max()))


def error(scale: float | None, rows: torch.Tensor, fmt: Format) -> float:
    assert scale is not None
    return float((fmt.round_inputs(rows, scale) - rows).norm())


def test_absmax_maps_largest_input_to_maximum() -> None:
    rows = torch.tensor([[1.0, -896.0]])
    assert measure_input_scale("absmax", known(rows), E4M3) == 2.0


def test_a_percentile_leaves_one_outlier_out() -> None:
    rows = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    rows[0, 0] = 1e4
    assert measure_input_scale("percentile", known(rows), E4M3) < 10 / 448
    assert measure_input_scale("absmax", known(rows), E4M3) == pytest.approx(1e4 / 448)


@STATIC
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_least_error_is_never_worse_than_absmax(spread: float, fmt: Format) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(256, 64, generator=generator) * torch.rand(64, generator=generator) ** spread
    found = {name: error(measure_input_scale(name, known(rows), fmt), rows, fmt) for name in INPUT_SCALE_METHODS}
    assert found["mse"] <= found["absmax"]


@pytest.mark.parametrize("method", INPUT_SCALE_METHODS)
def test_without_rows_the_absolute_maximum_counts(method: str) -> None:
    assert measure_input_scale(method, InputStatistics(absmax=448.0), E4M3) == 1.0


@STATIC
@pytest.mark.parametrize("method", INPUT_SCALE_METHODS)
def test_zero_inputs_have_nonzero_scale(method: str, fmt: Format) -> None:
    scale = measure_input_scale(method, known(torch.zeros(4, 16)), fmt)
    assert scale is not None and scale > 0


@pytest.mark.parametrize(("largest", "scale"), [(1.0, None), (224.0, None), (300.0, 300 / 224), (4480.0, 20.0)])
def test_auto_writes_scales_near_saturation(largest: float, scale: float | None) -> None:
    """Scale 1 is what ComfyUI takes by itself; with a scale, inputs may be `HEADROOM` times as large as recorded."""
    found = measure_input_scale("auto", InputStatistics(absmax=largest), E4M3)
    assert found == (None if scale is None else pytest.approx(scale))
    assert (found or 1.0) * E4M3.grid.maximum >= HEADROOM * largest * (1 - 1e-6)


def test_nvfp4_scale_fits_largest_recorded_input() -> None:
    """The largest group scale is then 448, the last E4M3 number, and its largest code 6."""
    rows = torch.tensor([[1.0, -5376.0] + [0.0] * 14])
    assert measure_input_scale("absmax", known(rows), NVFP4) == 2.0
    assert torch.equal(NVFP4.round_inputs(rows, 2.0)[0, 1:2], rows[0, 1:2])
    assert float(NVFP4.round_inputs(rows, 1.0).abs().max()) == 2688.0


def test_auto_leaves_nvfp4_inputs_to_comfyui() -> None:
    """ComfyUI measures them in every call, so that none saturates."""
    assert measure_input_scale("auto", InputStatistics(absmax=1e5), NVFP4) is None


def test_formats_without_static_inputs_get_none() -> None:
    for name in ("int8_row", "mxfp8", "int8_blockwise", "w4a8", "w6a8"):
        assert measure_input_scale("absmax", InputStatistics(absmax=1e4), FORMATS[name]) is None
    assert measure_input_scale("off", InputStatistics(absmax=1e4), E4M3) is None
    assert measure_input_scale("auto", InputStatistics(), E4M3) is None


@pytest.mark.parametrize("method", [*INPUT_SCALE_METHODS, "auto"])
def test_scales_of_the_largest_inputs_are_finite(method: str) -> None:
    scale = measure_input_scale(method, InputStatistics(absmax=3.4e38), E4M3)
    assert scale is not None and 0 < scale < float("inf")
