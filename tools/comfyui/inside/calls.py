"""Calls of a function, counted."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def count_calls(owner: Any, name: str) -> Iterator[list[int]]:
    """Count the calls of a function while the block runs; each adds an entry."""
    function, calls = getattr(owner, name), list[int]()

    @functools.wraps(function)
    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    setattr(owner, name, counting)
    try:
        yield calls
    finally:
        setattr(owner, name, function)
