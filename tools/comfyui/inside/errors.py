"""Errors that programs expect, as text."""

from __future__ import annotations

from collections.abc import Callable


def error_message(action: Callable[[], object], *, with_type: bool = False) -> str | None:
    """Run an action; returns the message of its exception, with its type in front if asked, or None."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}" if with_type else str(error)
    return None
