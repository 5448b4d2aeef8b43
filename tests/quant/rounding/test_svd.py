from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.errors import RecipeError
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.scales import absmax
from calibrated_rounding.quant.recipe import OPTIMIZERS, SvdSettings
from calibrated_rounding.quant.rounding import round_nearest, round_svd
from calibrated_rounding.quant.rounding.svd import project_weight
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("prodigyplus")

FORMAT_NAMES = ["float8_e4m3fn", "int8_row", "int8_tensor", "mxfp8", "int8_blockwise"]


def steps_moved(codes: torch.Tensor, nearest: torch.Tensor) -> int:
    """Largest number of grid points between two codes; the bytes of a float's magnitude count its points."""
    if codes.dtype == torch.int8:
        return int((codes.int() - nearest.int()).abs().max())

    def rank(x: torch.Tensor) -> torch.Tensor:
        raw = x.view(torch.uint8).int()
        return torch.where(raw < 128, raw, 128 - raw)

    return int((rank(codes) - rank(nearest)).abs().max())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_projected_error_on_the_grid_falls(optimizer: str, name: str, trained: torch.Tensor) -> None:
    fmt = FORMATS[name]
    scale = absmax(trained, fmt)
    result = round_svd(trained, scale, fmt, SvdSettings(optimizer=optimizer))
    # The figures are measured here again, from the codes and exact singular vectors.
    projection = project_weight(trained, SvdSettings(full=True))
    nearest = round_nearest(trained, scale, fmt)
    after, before = (float(projection.project_error(fmt.dequantize(c, scale)).norm()) for c in (result.codes, nearest))
    assert after < 0.75 * before
    assert result.error < 0.75 * result.nearest_error
    assert not result.fell_back
    assert steps_moved(result.codes, nearest) == 1


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_default_optimizer_keeps_weight_error_low(name: str, trained: torch.Tensor) -> None:
    fmt = FORMATS[name]
    scale = absmax(trained, fmt)
    result = round_svd(trained, scale, fmt, SvdSettings())
    assert result.error < 0.35 * result.nearest_error
    learned, nearest = (
        float((fmt.dequantize(c, scale) - trained).norm()) for c in (result.codes, round_nearest(trained, scale, fmt))
    )
    assert learned < 1.05 * nearest


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    optimizer=st.sampled_from([*OPTIMIZERS]),
    lr=st.sampled_from([None, 1e-6, 30.0]),
)
def test_never_worse_than_nearest(seed: int, rows: int, columns: int, optimizer: str, lr: float | None) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    fmt = FORMATS["int8_row"]
    scale = absmax(weight, fmt)
    result = round_svd(weight, scale, fmt, SvdSettings(optimizer=optimizer, iterations=5, lr=lr, min_k=1, top_p=0.5))
    assert result.error <= result.nearest_error
    nearest = round_nearest(weight, scale, fmt)
    assert steps_moved(result.codes, nearest) <= 1
    if result.fell_back:
        assert torch.equal(result.codes, nearest)


def test_useless_optimizer_falls_back_to_nearest(trained: torch.Tensor) -> None:
    fmt = FORMATS["int8_row"]
    # A step this long throws every code to a random side, and one iteration leaves no time to return.
    result = round_svd(trained, absmax(trained, fmt), fmt, SvdSettings(optimizer="adamw", iterations=1, lr=1e4))
    assert torch.equal(result.codes, round_nearest(trained, absmax(trained, fmt), fmt))
    assert result.error == result.nearest_error


def test_zero_weight() -> None:
    fmt = FORMATS["int8_row"]
    weight = torch.zeros(16, 32)
    result = round_svd(weight, absmax(weight, fmt), fmt, SvdSettings())
    assert not result.codes.any()
    assert result.error == 0.0


def test_exact_and_randomized_svd_agree(trained: torch.Tensor) -> None:
    fmt = FORMATS["int8_row"]
    scale = absmax(trained, fmt)
    randomized = round_svd(trained, scale, fmt, SvdSettings())
    exact = round_svd(trained, scale, fmt, SvdSettings(full=True))
    assert randomized.error == pytest.approx(exact.error, rel=0.2)


def test_check_cancelled_stops_it(trained: torch.Tensor) -> None:
    calls = 0

    def check_cancelled() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        round_svd(trained, absmax(trained, FORMATS["int8_row"]), FORMATS["int8_row"], SvdSettings(), check_cancelled)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("optimizer", "sgd"), ("iterations", 0), ("lr", 0.0), ("top_p", 0.0), ("top_p", 1.5), ("min_k", 0), ("max_k", 1)],
)
def test_settings_out_of_range(setting: str, value: object) -> None:
    with pytest.raises(RecipeError, match=setting):
        SvdSettings(**{setting: value})  # type: ignore[arg-type]
