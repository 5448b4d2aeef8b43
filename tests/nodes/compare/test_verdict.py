"""Verdicts on a PSNR, and on several candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from calibrated_rounding.nodes.compare.latents import CandidateRow, Closeness, LatentComparison, SeedComparison
from calibrated_rounding.nodes.compare.verdict import judge, judge_all
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


def make_row(name: str, nbytes: int, psnrs: Sequence[float], seconds: float | None = None) -> CandidateRow:
    seeds = tuple(SeedComparison(seed, (), Closeness(psnr, 1.0, 0.0)) for seed, psnr in enumerate(psnrs))
    return CandidateRow(name=name, nbytes=nbytes, seconds=seconds, comparison=LatentComparison(seeds))


INT8 = make_row("int8", 1000, [56, 57, 56, 57], seconds=1.0)
NEAREST = make_row("nearest", 1000, [55, 56, 55.5, 55.5], seconds=1.05)
FOUR_BITS = make_row("4 bits", 550, [48, 49, 48, 49], seconds=1.3)
SIX_BITS = make_row("6 bits", 800, [55.5, 57.5, 55.5, 57.2])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([NEAREST, INT8], "Take 'int8': it is the closest, and none is clearly smaller."),
        ([INT8, FOUR_BITS], "Take 'int8' if it fits: over these seeds none is surely closer. '4 bits' is the smallest"),
        ([INT8, SIX_BITS], "Take '6 bits': none is clearly smaller, and over these seeds it is not surely further off"),
        ([FOUR_BITS, SIX_BITS, INT8], "Take '6 bits' if it fits: over these seeds none is surely closer. '4 bits'"),
        ([make_row("same", 2000, [math.inf] * 4), INT8], "Take 'same' if it fits"),
    ],
)
def test_verdict_says_which_candidate_to_take(rows: list[CandidateRow], words: str) -> None:
    verdict = judge_all(rows)
    assert render(verdict[0]).startswith(words)
    named = [entry.values["candidate"] for entry in verdict if entry.kind.startswith("compare_each")]
    assert named == [row.name for row in rows], "every candidate has its verdict"


def test_smaller_candidate_comes_with_what_it_costs() -> None:
    assert "45% smaller, 8.0 dB further off." in render(judge_all([INT8, FOUR_BITS])[0])


def test_only_clearly_faster_candidates_are_named() -> None:
    fastest = [render(entry) for entry in judge_all([FOUR_BITS, INT8])]
    assert "'int8' was the fastest here: 1 s a step." in fastest
    assert not any("fastest" in render(entry) for entry in judge_all([INT8, NEAREST, FOUR_BITS]))


def test_candidates_that_are_not_measured_are_left_out() -> None:
    assert judge_all([make_row("broken", 1, [math.nan])]) == []


def test_of_one_seed_the_closer_candidate_counts() -> None:
    one, other = make_row("one", 1000, [57]), make_row("other", 500, [50])
    assert render(judge_all([one, other])[0]).startswith("Take 'one' if it fits")
