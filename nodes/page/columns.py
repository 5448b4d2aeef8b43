"""Tables as the front end gets them: a list for each column, so that a thousand layers stay a small message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 6
"""Significant digits of numbers; a page shows four."""


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows' values by column. Rows must have the same keys; no rows give no columns.

    A column of few different values is ``{"values": the different ones, "index": the place of each row's among them}``.
    """
    return {key: _column([_shortened(row[key]) for row in rows]) for key in (rows[0] if rows else ())}


def _column(values: list[Any]) -> Any:
    different: dict[str, int] = {}
    index = [different.setdefault(repr(value), len(different)) for value in values]
    if 2 * len(different) > len(values):
        return values
    first = {place: value for value, place in zip(reversed(values), reversed(index), strict=True)}
    return {"values": [first[place] for place in range(len(different))], "index": index}


def _shortened(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
