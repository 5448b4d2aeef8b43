"""Results kept on disk, so that an evicted output of the graph is not minutes of work again.

An entry is a safetensors file and a JSON file with its SHA-256 and its report, which is written last; an entry that is
incomplete, altered or no plain file is dropped and made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...quant import Recipe, Report
from ...quant.files import read_header
from ...quant.files.source_file import SourceFile
from ...quant.files.staging import remove_abandoned
from ...quant.files.text_file import write_text
from ...quant.version import VERSION

LIMIT_BYTES = 16 * 2**30
"""Room for the cache on disk. The entries used least recently go first; the newest always stays."""

TENSORS, REPORT = ".safetensors", ".json"
MAX_REPORT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Entry:
    path: Path
    report: Report


class Cache:
    """The entries in ``folder``, which need not exist."""

    def __init__(self, folder: str | os.PathLike[str], limit: int = LIMIT_BYTES) -> None:
        self.folder, self.limit = Path(folder), limit

    def path(self, source: str, recipe: Recipe, device: str) -> Path:
        """Return the path of the result of ``recipe`` on the model with the fingerprint ``source``."""
        key = json.dumps([VERSION, source, recipe.to_dict(), device], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}{TENSORS}"

    def find(self, path: Path) -> Entry | None:
        """The entry at ``path``, marked as used; None, and nothing left of it, where there is no sound one."""
        try:
            entry = self._load(path)
            os.utime(path)
        except Exception:  # whatever a damaged entry raises, it is made again
            _remove(path)
            return None
        return entry

    def complete(self, path: Path, report: Report) -> Entry:
        """Make the tensors written to ``path`` an entry, and remove the entries that no longer fit."""
        described = {"sha256": _sha256(path), "report": report.to_dict()}
        write_text(path.with_suffix(REPORT), json.dumps(described))
        self.prune(path)
        return Entry(path, report)

    def prune(self, newest: Path | None = None) -> None:
        """Remove files of processes that died, then the oldest entries beyond the limit."""
        if not self.folder.is_dir():
            return
        remove_abandoned(self.folder)
        room = self.limit - sum(_size(path) for path in self.folder.glob(".*.part"))
        older = _by_last_use(path for path in self.folder.glob(f"*{TENSORS}") if path != newest)
        for path in [newest, *older] if newest is not None else older:
            room -= _size(path)
            if room < 0 and path != newest:
                _remove(path)

    def _load(self, path: Path) -> Entry:
        """Raises whatever is wrong with the entry."""
        report = path.with_suffix(REPORT)
        if not (_is_plain(path) and _is_plain(report)) or _size(report) > MAX_REPORT_BYTES:
            raise ValueError(f"{path} is no entry")
        described = json.loads(report.read_text(encoding="utf-8"))
        read_header(path)
        if described["sha256"] != _sha256(path):
            raise ValueError(f"{path} was altered")
        return Entry(path, Report.from_dict(described["report"]))


def _is_plain(path: Path) -> bool:
    """Whether it is a regular file and no symbolic link."""
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def _sha256(path: Path) -> str:
    with SourceFile(path) as file:
        return file.sha256()


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_size
    return 0


def _remove(path: Path) -> None:
    for part in (path.with_suffix(REPORT), path):
        with contextlib.suppress(OSError):
            part.unlink()


def _by_last_use(paths: Iterable[Path]) -> list[Path]:
    times: dict[Path, float] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            times[path] = path.lstat().st_mtime
    return sorted(times, key=lambda path: -times[path])
