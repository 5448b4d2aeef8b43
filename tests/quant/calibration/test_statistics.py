"""Statistics of one layer: which values are refused, and which weights they fit."""

from __future__ import annotations

import math

import pytest
import torch
from calibrated_rounding.quant import InputStatistics, QuantError
from calibrated_rounding.quant.calibration.statistics import NO_STATISTICS, fingerprint


@pytest.mark.parametrize("name", ["absmax", "sensitivity"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -1.0, 1e308, 10**400])
def test_unmeasurable_values_are_refused(name: str, value: float) -> None:
    with pytest.raises(QuantError, match=rf"A layer's {name} is .*; record the inputs again\.$"):
        InputStatistics(**{name: value})


def test_fingerprint_ignores_the_dtype() -> None:
    weight = torch.randn(300, 70).bfloat16()
    assert fingerprint(weight) == fingerprint(weight.float())
    assert fingerprint(weight) != fingerprint(weight.view(70, 300))


def test_statistics_fit_only_matching_weight() -> None:
    weight = torch.randn(4, 8)
    statistics = InputStatistics(mean=torch.zeros(8), rows=torch.zeros(2, 8), fingerprint=fingerprint(weight))
    assert statistics.fits(weight) and NO_STATISTICS.fits(weight)
    assert not statistics.fits(weight + 1)
    assert not InputStatistics(mean=torch.zeros(7)).fits(weight)
    assert not InputStatistics(rows=torch.zeros(2, 7)).fits(weight)


def test_statistics_fit_weight_with_and_without_patches() -> None:
    weight = torch.arange(32.0).view(4, 8)
    prints = {"fingerprint": fingerprint(weight), "patched_fingerprint": fingerprint(weight + 1)}
    patched, plain = InputStatistics(**prints), InputStatistics(fingerprint=fingerprint(weight))
    assert patched.fits(weight) and patched.fits(weight + 1) and not patched.fits(weight + 2)
    assert plain.fits(weight) and not plain.fits(weight + 1)
