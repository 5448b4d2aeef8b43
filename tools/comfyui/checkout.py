"""This checkout of the pack: where it lies, its example models, and its copy in a ComfyUI's custom_nodes."""

from __future__ import annotations

import shutil
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
PACK_NAME = "calibrated-rounding"
"""Folder under custom_nodes, as the registry and ComfyUI-Manager name it."""


def example_model(name: str) -> Path:
    """Find a file of the small trained models that the repository ships."""
    return next((PACK / "examples" / "models").rglob(name))


def install_checkout(custom_nodes: Path) -> None:
    """Copy the pack as it lies here, under its own name."""
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "output")
    shutil.copytree(PACK, custom_nodes / PACK_NAME, ignore=ignore)
