"""The rooms of nodes/ import one way: nodes -> pipeline -> page -> recipe inputs and ComfyUI's internals."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "nodes"
BELOW = {
    "nodes": {"pipeline", "page", "recipe", "host", "compare", "examples"},
    "pipeline": {"page", "host"},
    "page": {"recipe", "host"},
    "recipe": set(),
    "host": set(),
    "compare": set(),
    "examples": set(),
}
"""Room -> the rooms that it may import. Files at the top are the room ``nodes``."""


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0] if path.parent != ROOT else "nodes"


def imported_rooms(path: Path) -> Iterator[str]:
    """Rooms of nodes/ that a file imports from, by its relative imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                target = base.joinpath(*name.split("."))
                if ROOT in target.parents:
                    first = ROOT / target.relative_to(ROOT).parts[0]
                    yield first.name if first.is_dir() else "nodes"


@pytest.mark.parametrize("name", BELOW)
def test_rooms_import_downwards_only(name: str) -> None:
    files = [path for path in ROOT.rglob("*.py") if room(path) == name]
    assert files
    for path in files:
        assert set(imported_rooms(path)) - {name} <= BELOW[name], path


def test_every_room_is_listed() -> None:
    assert {room(path) for path in ROOT.rglob("*.py")} == BELOW.keys()
