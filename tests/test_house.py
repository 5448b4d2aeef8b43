"""The plan of the house: imports run one way, and what a room may know."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

QUANT = (
    *("errors", "version", "text", "seeds", "device", "parallel", "pipelining", "workers", "bounded_json", "patterns"),
    "notices",
    *("settings", "formats", "recipe", "files", "calibration", "rounding", "layer", "planning", "reports"),
    *("finished", "run", "execution", "engine", "api", "public", "__init__", "cli", "__main__"),
)
"""Modules and folders of ``quant``, each of which may import itself and what stands before it."""

NODES = ("prompts", "compare", "recipe", "host", "schema", "page", "pipeline", "examples", "nodes_*", "extension")
"""Modules and folders of ``nodes``, in the same way."""

FOLDERS = ("quant", "nodes", "kernels", "tools", "benchmarks", "tests")

COMFYUI = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "latent_preview", "nodes"}


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Every module that a file imports from this repository, as the parts of its path."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            parts = (*base, *(node.module or "").split(".")) if node.module else base
            yield from ([*parts, alias.name] for alias in node.names) if len(parts) < 2 else [parts]


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def room(parts: tuple[str, ...]) -> str:
    name = parts[1].removesuffix(".py") if len(parts) > 1 else "__init__"
    return "nodes_*" if parts[0] == "nodes" and name.startswith("nodes_") else name


@pytest.mark.parametrize(("folder", "order"), [("quant", QUANT), ("nodes", NODES)])
def test_imports_run_one_way(folder: str, order: tuple[str, ...]) -> None:
    upward = [
        f"{path.relative_to(ROOT)} imports {'.'.join(target)}"
        for path in files(folder)
        for target in imports(path)
        if target[0] == folder
        if order.index(room(tuple(target))) > order.index(room(path.relative_to(ROOT).parts))
    ]
    assert not upward


@pytest.mark.parametrize(("folder", "allowed"), [("quant", {"quant", "kernels"}), ("kernels", {"kernels"})])
def test_the_engine_knows_no_nodes(folder: str, allowed: set[str]) -> None:
    assert all(target[0] in allowed for path in files(folder) for target in imports(path))


@pytest.mark.parametrize("folder", ["quant", "kernels"])
def test_the_engine_knows_no_comfyui(folder: str) -> None:
    for path in files(folder):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & COMFYUI, path


def test_wide_dataclasses_are_keyword_only() -> None:
    positional = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for folder in FOLDERS
        for path in files(folder)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        if any("dataclass" in ast.unparse(line) and "kw_only" not in ast.unparse(line) for line in node.decorator_list)
        if sum(isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line) for line in node.body) > 3
    ]
    assert not positional
