from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.errors import RecipeError
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.rounding import round_nearest
from calibrated_rounding.quant.rounding.calibrated import CalibratedSettings, round_calibrated
from calibrated_rounding.quant.scales import absmax

FORMAT_NAMES = ["float8_e4m3fn", "int8_row", "int8_tensor", "mxfp8", "int8_blockwise"]


def correlated(rows: int, width: int, seed: int) -> torch.Tensor:
    """Inputs whose covariance has a power-law spectrum in a random basis, the same for every seed."""
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(99)))[0]
    spread = torch.arange(1, width + 1).float() ** -0.7
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * spread @ basis.T


def independent_outliers(rows: int, width: int, seed: int) -> torch.Tensor:
    inputs = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    inputs[:, ::32] *= 20
    return inputs


def output_error(
    codes: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, inputs: torch.Tensor, name: str
) -> float:
    return float((inputs @ (FORMATS[name].dequantize(codes, scale) - weight).T).norm())


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_output_error_on_unseen_inputs_halves(name: str, trained: torch.Tensor) -> None:
    fmt = FORMATS[name]
    scale = absmax(trained, fmt)
    result = round_calibrated(trained, scale, fmt, correlated(2048, 256, seed=1), CalibratedSettings())
    unseen = correlated(2048, 256, seed=2)
    before = output_error(round_nearest(trained, scale, fmt), scale, trained, unseen, name)
    assert output_error(result.codes, scale, trained, unseen, name) < 0.55 * before
    assert result.error < 0.55 * result.nearest_error


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("rows", [8, 16, 256, 2048])
@pytest.mark.parametrize("draw", [correlated, independent_outliers])
def test_never_worse_than_nearest_on_held_out_inputs(name: str, rows: int, draw: object, trained: torch.Tensor) -> None:
    fmt = FORMATS[name]
    scale = absmax(trained, fmt)
    result = round_calibrated(trained, scale, fmt, draw(rows, 256, seed=3), CalibratedSettings())  # type: ignore[operator]
    assert result.error <= result.nearest_error


@pytest.mark.parametrize("name", ["int8_row", "float8_e4m3fn"])
def test_independent_outliers_are_no_worse_on_unseen_inputs(name: str, trained: torch.Tensor) -> None:
    fmt = FORMATS[name]
    scale = absmax(trained, fmt)
    result = round_calibrated(trained, scale, fmt, independent_outliers(2048, 256, seed=1), CalibratedSettings())
    unseen = independent_outliers(4096, 256, seed=2)
    nearest = round_nearest(trained, scale, fmt)
    assert output_error(result.codes, scale, trained, unseen, name) <= output_error(
        nearest, scale, trained, unseen, name
    )


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_too_few_rows_give_nearest(rows: int, trained: torch.Tensor) -> None:
    fmt = FORMATS["int8_row"]
    scale = absmax(trained, fmt)
    result = round_calibrated(trained, scale, fmt, correlated(rows, 256, seed=1), CalibratedSettings())
    assert torch.equal(result.codes, round_nearest(trained, scale, fmt))
    assert result.rows_given_back == 512


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20, 1e15])
def test_constant_inputs(value: float, trained: torch.Tensor) -> None:
    """All channels constant, or one constant and the rest dead: a moment of rank one, or zero."""
    fmt = FORMATS["int8_row"]
    scale = absmax(trained, fmt)
    for inputs in (torch.full((64, 256), value), torch.zeros(64, 256).index_fill_(1, torch.tensor([5]), value)):
        result = round_calibrated(trained, scale, fmt, inputs, CalibratedSettings())
        assert result.error <= result.nearest_error
        assert torch.isfinite(torch.tensor(result.error))


@pytest.mark.parametrize(("setting", "value"), [("damping", 0.0), ("held_out", 0.0), ("held_out", 1.0), ("passes", -1)])
def test_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(RecipeError, match=setting):
        CalibratedSettings(**{setting: value})  # type: ignore[arg-type]
