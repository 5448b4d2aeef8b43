"""Writing a small file whole or not at all, and trying beforehand whether it can be written."""

from __future__ import annotations

import os
from pathlib import Path

from .staging import StagedFile


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = True) -> None:
    """Write ``text`` as UTF-8; an older file at ``path`` is replaced in one step.

    Args:
        path: the file.
        text: its content.
        overwrite: replace an older file.

    Raises:
        CheckpointError: the system refuses, as where the disk is full or ``path`` is no plain file; or there is a file
            that is not to be replaced.
    """
    data = text.encode("utf-8")
    staged = StagedFile(Path(path), len(data), overwrite=overwrite)
    try:
        staged.create()
        staged.write_at(0, data)
        staged.publish()
    finally:
        staged.discard()


def try_target(path: str | os.PathLike[str]) -> None:
    """Make a temporary file beside ``path`` and remove it.

    Raises:
        CheckpointError: the system refuses; better before the work than after it.
    """
    staged = StagedFile(Path(path), 0)
    try:
        staged.create()
    finally:
        staged.discard()
