"""Seeds as a user writes them: numbers and ranges. Knows no ComfyUI."""

from __future__ import annotations

import re

from ...quant.errors import QuantError

LARGEST = 2**64 - 1
MOST = 1000

RANGE = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?")


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of ``"1, 2, 8-11"``, each once, in the order written; commas, semicolons and white space separate.

    Raises QuantError for no seed, for what is neither a number nor a rising range, for a seed above `LARGEST`, and for
    more than `MOST`.
    """
    words = re.sub(r"\s*-\s*", "-", text).replace(",", " ").replace(";", " ").split()
    if not words:
        raise QuantError("No seed is given: write some, such as 1, 2, 8-11.")
    ranges = [_range(word) for word in words]
    if sum(seeds.stop - seeds.start for seeds in ranges) > MOST:
        raise QuantError(f"'{text.strip()}' names more than {MOST} seeds; give fewer.")
    return tuple(dict.fromkeys(seed for seeds in ranges for seed in seeds))


def _range(word: str) -> range:
    match = RANGE.fullmatch(word)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise QuantError(f"'{word}' is neither a seed nor a range of seeds; write numbers such as 1, 2, 8-11.")
    if last > LARGEST:
        raise QuantError(f"The seed {last} is too large; the largest is {LARGEST}.")
    return range(first, last + 1)
