"""Tables as the front end receives them: a list for each column, so that a thousand layers stay a small message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 6
"""Significant digits of numbers; the page shows four."""


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows' values by column. Rows must have the same keys; no rows give no columns.

    A column of few different values is ``{"values": the different values, "index": each row's place among them}``. A
    column of objects is ``{"fields": their own columns, "present": for each row whether it has one or null}``.
    """
    return {key: _column([row[key] for row in rows]) for key in (rows[0] if rows else ())}


def _column(values: list[Any]) -> Any:
    if any(isinstance(value, Mapping) for value in values):
        objects = [value for value in values if value is not None]
        return {"fields": columns(objects), "present": _column([value is not None for value in values])}
    return _compress([_shorten(value) for value in values])


def _compress(values: list[Any]) -> Any:
    different: dict[str, int] = {}
    index = [different.setdefault(repr(value), len(different)) for value in values]
    if 2 * len(different) > len(values):
        return values
    first = {place: value for value, place in zip(reversed(values), reversed(index), strict=True)}
    return {"values": [first[place] for place in range(len(different))], "index": index}


def _shorten(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
