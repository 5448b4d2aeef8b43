"""Outputs: what must not be written is refused before the work."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError
from .shards import INDEX_SUFFIX, read_weight_map


def list_files(path: str | os.PathLike[str]) -> list[Path]:
    """Every file of a checkpoint: the file itself, or an index and its shards.

    Raises:
        CheckpointError: the index cannot be read.
    """
    path = Path(path)
    shards = read_weight_map(path).values() if path.name.lower().endswith(INDEX_SUFFIX) else ()
    return [path, *sorted({path.parent / shard for shard in shards}, key=Path.as_posix)]


def refuse_same_file(sources: Iterable[str | os.PathLike[str]], target: str | os.PathLike[str]) -> None:
    """Raise CheckpointError when ``target`` is one of ``sources``, be it through a symbolic or a hard link."""
    for source in sources:
        with suppress(OSError, ValueError):
            if os.path.samefile(source, target):
                raise CheckpointError(f"{target} is the file that is read ({source}); choose another output name.")


def refuse_special(target: Path) -> None:
    """Raise CheckpointError for a folder, a device, a pipe or a socket, and a link to a file that is missing."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if target.is_symlink():
            raise CheckpointError(
                f"{target} is a link to a file that does not exist; remove the link, or choose another name."
            ) from None
        return
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{target} is a folder; name a file in it.")
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{target} is not a regular file and will not be replaced.")
