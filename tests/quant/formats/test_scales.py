from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.formats import FORMATS, ScaledFormat
from calibrated_rounding.quant.formats.scales import absmax, least_error
from calibrated_rounding.quant.rounding import round_nearest
from hypothesis import given
from hypothesis import strategies as st

SCALED = {name: fmt for name, fmt in FORMATS.items() if isinstance(fmt, ScaledFormat)}
ALL = pytest.mark.parametrize("fmt", SCALED.values(), ids=list(SCALED))


def square_error(weight: torch.Tensor, scale: torch.Tensor, fmt: ScaledFormat) -> torch.Tensor:
    error = (fmt.dequantize(round_nearest(weight, scale, fmt), scale) - weight).double().square()
    return fmt.granularity.sum(error)


@ALL
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 1.0, 3.0]), size=st.sampled_from([1e-30, 1.0, 1e30]))
def test_absmax_never_clips(fmt: ScaledFormat, seed: int, spread: float, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 64, generator=generator) * (spread * torch.randn(8, 1, generator=generator)).exp() * size
    scaled = weight / fmt.granularity.expand(absmax(weight, fmt), (8, 64))
    # One rounding of the division may carry a weight just past the last point.
    assert float(scaled.abs().max()) <= fmt.grid.maximum * (1 + 1e-6)


@ALL
def test_search_is_never_worse_than_absmax_anywhere(fmt: ScaledFormat, trained: torch.Tensor) -> None:
    base = square_error(trained, absmax(trained, fmt), fmt)
    searched = square_error(trained, least_error(trained, fmt), fmt)
    assert bool((searched <= base * (1 + 1e-6)).all())


def test_search_clips_an_outlier_that_costs_the_rest() -> None:
    fmt = SCALED["int8_row"]
    weight = torch.randn(1, 1 << 17, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 12.0
    assert float(square_error(weight, least_error(weight, fmt), fmt)) < 0.9 * float(
        square_error(weight, absmax(weight, fmt), fmt)
    )


@ALL
@pytest.mark.parametrize("method", [absmax, least_error])
def test_zeros_come_back_exactly(fmt: ScaledFormat, method: object, trained: torch.Tensor) -> None:
    weight = trained.clone()
    weight[3] = 0
    for zeroed in (weight, torch.zeros_like(weight)):
        scale = method(zeroed, fmt)  # type: ignore[operator]
        assert bool((scale > 0).all())
        assert bool((fmt.dequantize(round_nearest(zeroed, scale, fmt), scale)[3] == 0).all())
