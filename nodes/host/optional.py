"""Symbols of ComfyUI that some version may lack: a missing one costs its feature and one log line, not the pack."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from typing import Any


@cache
def import_optional(module: str, name: str, loss: str) -> Any | None:
    """Import a symbol where it is used.

    Args:
        module: The full name of ComfyUI's module.
        name: The symbol's name in it.
        loss: What does not work without it, for the log.

    Returns:
        The symbol; None, and one log line, where this ComfyUI has none of that name.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        logging.warning("calibrated-rounding: this ComfyUI has no %s.%s: %s.", module, name, loss)
        return None
