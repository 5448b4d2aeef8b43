"""Workflows as the front end stores them, and as the server runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CONTROLS = ("fixed", "increment", "decrement", "randomize")
"""Values of the widget that the front end adds to a seed; it is stored, and never sent."""


NOTE = "MarkdownNote"
"""Type of a node that only the front end knows."""


def api_format(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a workflow, whose nodes are all enabled and store all their widgets, to the API format."""
    sources = {link: [str(node), slot] for link, node, slot, *_ in workflow["links"]}
    return {str(node["id"]): _convert_node(node, sources) for node in workflow["nodes"] if node["type"] != NOTE}


def table(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the rows of a table that a node shows as columns."""
    lists = {key: _spread(column) for key, column in columns.items()}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _spread(column: Any) -> list[Any]:
    """List a column's values: as they are, by index, or objects by field."""
    if isinstance(column, list):
        return column
    if "fields" not in column:
        return [column["values"][place] for place in column["index"]]
    objects = iter(table(column["fields"]))
    return [next(objects) if present else None for present in _spread(column["present"])]


def _convert_node(node: Mapping[str, Any], sources: Mapping[int, list[Any]]) -> dict[str, Any]:
    names = [entry["widget"]["name"] for entry in node["inputs"] if "widget" in entry]
    inputs = dict(_pair(names, node["widgets_values"]))
    inputs |= {entry["name"]: sources[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
    return {"class_type": node["type"], "inputs": inputs}


def _pair(names: list[str], values: list[Any]) -> Iterator[tuple[str, Any]]:
    rest = iter(values)
    for name in names:
        yield name, next(rest)
        if name.endswith("seed") and len(values) > len(names):
            assert next(rest) in CONTROLS
