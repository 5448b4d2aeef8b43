"""The versions of the pack (also in pyproject.toml) and of the packages that it runs on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

VERSION = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of the pack and of the packages that a result depends on."""
    return {"calibrated-rounding": VERSION, "python": platform.python_version()} | {
        name: _installed(name) for name in ("torch", "comfy-kitchen", "safetensors")
    }


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
