"""Regular expressions of the user, or of somebody's shared workflow, searched in layer names within a time limit.

Python's own ``re`` holds the interpreter while an expression such as ``(a|aa)+$`` tries its 2^n ways; ``regex`` stops.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import regex

from .errors import RecipeError

SECONDS = 2.0
"""Time for all searches of one plan together: a thousand times what sound expressions take for 20,000 layers."""

MAX_LENGTH = 10_000
"""Characters of an expression."""


def find_fault(pattern: str) -> str:
    """Why a text is not a regular expression, or too large a one; empty if it is one."""
    if len(pattern) > MAX_LENGTH:
        return f"{len(pattern)} characters, more than {MAX_LENGTH}"
    try:
        regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError, MemoryError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


class PatternSearch:
    """Searches names for several expressions, all within `SECONDS`."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._left = seconds

    def first(self, patterns: Iterable[str], name: str) -> int | None:
        """The place of the first pattern that is found in ``name``.

        Raises:
            RecipeError: the searches take too long.
        """
        return next((i for i, pattern in enumerate(patterns) if self._search(pattern, name)), None)

    def _search(self, pattern: str, name: str) -> bool:
        started = time.monotonic()
        try:
            # Released, so that a server goes on answering meanwhile.
            found = regex.search(pattern, name, timeout=max(self._left, 0.001), concurrent=True)
        except TimeoutError:
            raise RecipeError(
                f"The regular expression '{_shorten(pattern)}' takes too long on the layer '{name}'; write it without "
                "nested repetition."
            ) from None
        self._left -= time.monotonic() - started
        return found is not None


def _shorten(pattern: str) -> str:
    return pattern if len(pattern) <= 80 else f"{pattern[:77]}..."
