"""A file that a node has written: where it is, how large it is, and which loader takes it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Loader:
    """A node that loads a file."""

    node: str
    """The node's class."""
    widget: str
    """Its widget that names the file."""
    value: str
    """The file as the widget lists it."""


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """A file that was written."""

    path: str
    """Full path."""
    nbytes: int
    loader: Loader | None
    """None: no loader lists its folder."""
    card: str = ""
    """Model card, as Markdown; empty for a calibration."""

    @classmethod
    def describe(cls, path: str | os.PathLike[str], loader: Loader | None, card: str) -> SavedFile:
        return cls(path=str(path), nbytes=os.path.getsize(path), loader=loader, card=card)
