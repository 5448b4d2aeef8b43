"""Verdicts on a PSNR."""

from __future__ import annotations

import math

import pytest
from calibrated_rounding.nodes.compare.verdict import judge
from calibrated_rounding.quant.notices import render


@pytest.mark.parametrize(
    ("psnr", "words"),
    [
        (math.inf, "Identical"),
        (56.3, "Very close (56.3 dB): a typical difference is 0.15 %"),
        (50, "Very close"),
        (49.9, "Close (49.9 dB)"),
        (40, "Close (40.0 dB): a typical difference is 1 %"),
        (35, "Different in details"),
        (12, "Another picture"),
        (-math.inf, "Another picture"),
    ],
)
def test_every_closeness_has_words(psnr: float, words: str) -> None:
    verdict = judge(psnr) if psnr != -math.inf else judge(-500.0)
    assert verdict is not None and render(verdict).startswith(words)


def test_nan_has_no_verdict() -> None:
    assert judge(math.nan) is None
