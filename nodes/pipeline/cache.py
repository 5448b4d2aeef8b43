"""Results kept on disk, so that an evicted output of the graph is not minutes of work again.

An entry is a safetensors file and, written after it, a JSON file with its report; without both there is no entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...quant import Recipe, Report
from ...quant.errors import CheckpointError
from ...quant.files import read_header
from ...quant.version import VERSION

LIMIT_BYTES = 16 * 2**30
"""What the cache may take on disk; the entries used least recently go first, the newest always stays."""

TENSORS, REPORT = ".safetensors", ".json"


@dataclass(frozen=True)
class Entry:
    path: Path
    report: Report


class Cache:
    """The entries in ``folder``, which need not exist."""

    def __init__(self, folder: str | os.PathLike[str], limit: int = LIMIT_BYTES) -> None:
        self.folder, self.limit = Path(folder), limit

    def path(self, source: str, recipe: Recipe, device: str) -> Path:
        """Where the result of ``recipe`` on the model with the fingerprint ``source`` is kept."""
        key = json.dumps([VERSION, source, recipe.to_dict(), device], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}{TENSORS}"

    def find(self, path: Path) -> Entry | None:
        """The entry at ``path``, marked as used; None if there is none or it is damaged."""
        try:
            read_header(path)
            report = Report.from_dict(json.loads(path.with_suffix(REPORT).read_text(encoding="utf-8")))
            os.utime(path)
        except (CheckpointError, OSError, ValueError, KeyError, TypeError):
            return None
        return Entry(path, report)

    def complete(self, path: Path, report: Report) -> Entry:
        """Make the tensors written to ``path`` an entry and forget what no longer fits."""
        target = path.with_suffix(REPORT)
        staged = target.with_suffix(".part")
        staged.write_text(report.to_json(), encoding="utf-8")
        os.replace(staged, target)
        self.prune(path)
        return Entry(path, report)

    def prune(self, newest: Path) -> None:
        room = self.limit
        for path in [newest, *_by_last_use(p for p in self.folder.glob(f"*{TENSORS}") if p != newest)]:
            with contextlib.suppress(OSError):
                room -= path.stat().st_size
                if room < 0 and path != newest:
                    path.with_suffix(REPORT).unlink(missing_ok=True)
                    path.unlink()


def _by_last_use(paths: Iterable[Path]) -> list[Path]:
    times: dict[Path, float] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            times[path] = path.stat().st_mtime
    return sorted(times, key=lambda path: -times[path])
