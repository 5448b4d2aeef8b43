"""Seeds as users write them."""

from __future__ import annotations

import pytest
from calibrated_rounding.nodes.compare.seeds import MAX_SEED, MAX_SEEDS, parse_seeds
from calibrated_rounding.quant import QuantError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", (7,)),
        ("1, 2, 3", (1, 2, 3)),
        ("1-8", tuple(range(1, 9))),
        ("5\n3\n4", (5, 3, 4)),
        (" 10 - 12 ; 0,", (10, 11, 12, 0)),
        ("3, 1-4, 3", (3, 1, 2, 4)),
        ("4-4", (4,)),
        (str(MAX_SEED), (MAX_SEED,)),
    ],
)
def test_numbers_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@given(st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=MAX_SEEDS, unique=True))
def test_written_seeds_are_read(seeds: list[int]) -> None:
    assert parse_seeds(", ".join(map(str, seeds))) == tuple(seeds)


@pytest.mark.parametrize("text", ["", " ,; ", "\n"])
def test_no_seed(text: str) -> None:
    with pytest.raises(QuantError, match=r"^There is no seed"):
        parse_seeds(text)


@pytest.mark.parametrize("word", ["x", "1.5", "-1", "3-", "1-2-3", "8-1", "0x10", "9" * 5000])
def test_invalid_seed_is_named(word: str) -> None:
    with pytest.raises(QuantError) as refused:
        parse_seeds(f"1, {word}")
    assert f"'{word}' is neither a seed nor a range" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_seed_that_the_host_does_not_take() -> None:
    with pytest.raises(QuantError, match=f"{MAX_SEED + 1} is too large"):
        parse_seeds(str(MAX_SEED + 1))


@pytest.mark.parametrize("text", [f"0-{MAX_SEEDS}", f"0-{MAX_SEED}"])
def test_too_many(text: str) -> None:
    with pytest.raises(QuantError, match=f"more than {MAX_SEEDS} seeds"):
        parse_seeds(text)
