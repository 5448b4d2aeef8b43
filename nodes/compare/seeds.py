"""Seeds as a user writes them: numbers and ranges."""

from __future__ import annotations

import re

from ...quant.errors import QuantError

MAX_SEED = 2**64 - 1
MAX_SEEDS = 1000

RANGE = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds such as ``"1, 2, 8-11"``; commas, semicolons and white space separate.

    Returns:
        Each seed once, in the order written.

    Raises:
        QuantError: if there is no seed, a word is neither a number nor a rising range, a seed is above `MAX_SEED`, or
            there are more than `MAX_SEEDS`.
    """
    words = re.sub(r"\s*-\s*", "-", text).replace(",", " ").replace(";", " ").split()
    if not words:
        raise QuantError("There is no seed: write some, such as 1, 2, 8-11.")
    ranges = [_parse_range(word) for word in words]
    if sum(seeds.stop - seeds.start for seeds in ranges) > MAX_SEEDS:
        raise QuantError(f"'{text.strip()}' names more than {MAX_SEEDS} seeds; give fewer.")
    return tuple(dict.fromkeys(seed for seeds in ranges for seed in seeds))


def _parse_range(word: str) -> range:
    match = RANGE.fullmatch(word)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise QuantError(f"'{word}' is neither a seed nor a range of seeds; write numbers such as 1, 2, 8-11.")
    if last > MAX_SEED:
        raise QuantError(f"The seed {last} is too large; the largest is {MAX_SEED}.")
    return range(first, last + 1)
