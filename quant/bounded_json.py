"""JSON that comes from a file of unknown origin, with a bound on its nesting."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

DEEPEST = 32
"""Nested objects and lists, at most. ComfyUI's markers and this pack's own fields stay below 10."""


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text so that its value can be printed, compared and written again.

    Raises:
        ValueError: for text that is not JSON, is nested deeper than `DEEPEST`, or holds a number that JSON does not
            know (NaN, infinity) or float64 cannot hold.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if _is_deep(value):
        raise ValueError("nested too deep")
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON's")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [item for entry in level for item in _items(entry)]
        if not level:
            return False
    return True


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
