"""Expressions from outside: sound ones work as with ``re``, the others end soon and in a sentence."""

from __future__ import annotations

import re

import pytest
import torch
from calibrated_rounding.quant import Recipe, RecipeError
from calibrated_rounding.quant.files.tensors import Spec
from calibrated_rounding.quant.patterns import PatternSearch
from calibrated_rounding.quant.planning.builder import make_plan
from hypothesis import given
from hypothesis import strategies as st

NAME = "a" * 60 + "b"
ENDLESS = "(a|aa)+$"
"""Has more ways to match `NAME` than a machine can try."""


def test_endless_pattern_is_refused_in_time() -> None:
    with pytest.raises(RecipeError, match=r"'\(a\|aa\)\+\$' takes too long") as caught:
        PatternSearch(seconds=0.2).first([ENDLESS], NAME)
    assert "\n" not in str(caught.value)


def test_plan_refuses_endless_exclusion() -> None:
    tensors = {f"{NAME}.weight": Spec(torch.bfloat16, (64, 64))}
    for settings in ({"exclude": (ENDLESS,)}, {"overrides": ((ENDLESS, "fp8"),)}):
        with pytest.raises(RecipeError, match="takes too long"):
            make_plan(tensors, Recipe(**settings))


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999999999}", "(" * 5000 + ")" * 5000, "x" * 20_000, "[z-a]"])
def test_impossible_patterns_are_one_sentence(pattern: str) -> None:
    for refuse in (lambda p: Recipe(exclude=(p,)), lambda p: Recipe(overrides=((p, "fp8"),))):
        with pytest.raises(RecipeError, match="regular expression") as caught:
            refuse(pattern)
        assert len(str(caught.value)) < 300


@given(layer=st.from_regex(r"[a-z]{1,5}(\.[a-z0-9]{1,5}){0,3}", fullmatch=True))
@pytest.mark.parametrize("pattern", ["attn", r"\.q$", r"^blocks\.[0-3]\.", r"(k|v)\b", r"\d", r"^$", "(?i)ATTN"])
def test_sound_patterns_match_as_re_does(pattern: str, layer: str) -> None:
    found = PatternSearch().first([pattern], layer)
    assert (found is not None) == (re.search(pattern, layer) is not None)
