"""Tuned tables: which backend and tile is fastest for a shape on an architecture, as measured; data, never guessed.

``tables/<arch>.json`` lies in the package, and a user's own in the cache folder; the user's entry wins. A file is
``{"version": 1, "arch", "device", "triton", "entries": {family: {bucket: {backend: {"tile": [...], "ms"}}}}}`` with
family and bucket as `tiles.Problem` names them. Nothing is tuned while a model runs: a table is written by
`tuning` alone.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .tiles import BACKENDS, Device, Problem, Tile, default_tile

VERSION = 1
LARGEST = 4096
"""Entries that a table holds at most; a new one takes the place of the oldest."""

PACKAGED = Path(__file__).parent / "tables"
FOLDER_VARIABLE = "CALIBRATED_ROUNDING_CACHE"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A backend with its tile; ms as measured, None for a default."""

    backend: str
    tile: Tile
    ms: float | None = None


Key = tuple[str, int]
"""Family and bucket of a problem."""

Table = Mapping[Key, tuple[Choice, ...]]


def choose(backend: str, problem: Problem, device: Device) -> Choice:
    """What runs a problem: "auto" takes the fastest that is known, a named backend its best tile, or the default tile.

    Where no table has the problem's bucket, the nearest one of the same N, K and scaling stands for it.
    """
    return _choose(backend, Problem(problem.bucket, problem.n, problem.k, problem.block), device, _user_folder())


@lru_cache(maxsize=LARGEST)
def _choose(backend: str, problem: Problem, device: Device, folder: Path) -> Choice:
    known = _nearest(known_choices(device.arch, folder), problem)
    wanted = [c for c in known if c.tile.fits(problem.block) and backend in ("auto", c.backend)]
    if wanted:
        return min(wanted, key=lambda choice: choice.ms or 0.0)
    return Choice("triton" if backend == "auto" else backend, default_tile(problem, device))


def _nearest(table: Table, problem: Problem) -> tuple[Choice, ...]:
    buckets = [bucket for family, bucket in table if family == problem.family]
    if not buckets:
        return ()
    nearest = min(buckets, key=lambda bucket: (abs(bucket.bit_length() - problem.bucket.bit_length()), bucket))
    return table[problem.family, nearest]


@lru_cache(maxsize=8)
def known_choices(arch: str, folder: Path) -> Table:
    """The packaged table of an architecture with the user's over it; each is read once in a process."""
    return {**read(PACKAGED / f"{arch}.json"), **read(folder / f"{arch}.json")}


def forget() -> None:
    """Read tables anew, after one was written."""
    known_choices.cache_clear()
    _choose.cache_clear()


def user_table(arch: str) -> Path:
    """The user's own table of an architecture."""
    return _user_folder() / f"{arch}.json"


def _user_folder() -> Path:
    """The folder of the environment variable `FOLDER_VARIABLE`, or the platform's cache folder."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    home = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return Path(home or Path.home() / ".cache") / "calibrated_rounding" / "kernels"


def read(path: Path) -> dict[Key, tuple[Choice, ...]]:
    """A table, empty where there is none; one that cannot be understood is left out and named in the log."""
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("The tuned table %s is not used, it cannot be read: %s.", path, error)
        return {}


def write(path: Path, table: Table, head: Mapping[str, str]) -> None:
    """Write a table at once: it appears whole or not at all. ``head``: arch, device and triton. Raises OSError."""
    entries: dict[str, dict[str, Any]] = {}
    for (family, bucket), choices in list(table.items())[-LARGEST:]:
        entries.setdefault(family, {})[str(bucket)] = {
            choice.backend: {"tile": list(astuple(choice.tile)), "ms": choice.ms} for choice in choices
        }
    document = {"version": VERSION, **head, "entries": entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
        json.dump(document, file, indent=1)
    os.replace(file.name, path)


def _parse(document: Any) -> dict[Key, tuple[Choice, ...]]:
    if document["version"] != VERSION:
        raise ValueError(f"its version is {document['version']}, not {VERSION}")
    return {
        (family, int(bucket)): tuple(_choice(backend, fields) for backend, fields in choices.items())
        for family, buckets in document["entries"].items()
        for bucket, choices in buckets.items()
    }


def _choice(backend: str, fields: Mapping[str, Any]) -> Choice:
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown")
    return Choice(backend, Tile(*map(int, fields["tile"])), float(fields["ms"]))
