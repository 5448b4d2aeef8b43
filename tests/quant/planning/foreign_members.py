"""Names of files that ComfyUI's loaders would not read as quantized models."""

from __future__ import annotations

from pathlib import Path

from calibrated_rounding.quant.planning.profiles import read_toml

MEMBERS: dict[str, dict[str, list[str]]] = read_toml(Path(__file__).parents[2] / "data" / "foreign_members.toml")
"""By kind, then by member; ``*`` stands for the numbers 0 to 2."""


def expand(names: list[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of all names."""
    numbered = ([name.replace("*", str(number)) for number in range(3)] if "*" in name else [name] for name in names)
    return {name: (64, 64) for group in numbered for name in group}
