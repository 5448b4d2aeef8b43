"""What a node that writes files shows: where each file is, how large it is, and which loader takes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...quant.notices import Notice, render
from ...quant.text import megabytes
from .shown import UI_KEY


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

    @classmethod
    def describe(cls, path: str | os.PathLike[str], loader: Loader | None) -> SavedFile:
        return cls(path=str(path), nbytes=os.path.getsize(path), loader=loader)


def show_files(files: Sequence[SavedFile], notices: Sequence[Notice] = (), text: str = "") -> dict[str, Any]:
    """The files that were written, as English text and as data for the pack's own front end.

    Args:
        files: In the order of writing.
        notices: What to know before they are loaded.
        text: More lines, shown below.
    """
    data = {
        "files": [asdict(file) for file in files],
        "notices": [entry.to_dict() for entry in notices],
        "more": text,
    }
    lines = [f"{file.path} ({megabytes(file.nbytes)} MB)" for file in files]
    return {UI_KEY: [data], "text": ["\n".join([*lines, *map(render, notices), *([text] if text else [])])]}
