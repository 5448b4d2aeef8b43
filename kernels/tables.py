"""Tuned tables: the fastest backend and tile for each shape on an architecture. Measured data, never guessed.

``tables/<arch>.json`` lies in the package, a user's own table in the cache folder; the user's entries win. A file is
``{"version": 1, "arch", "device", "triton", "entries": {family: {bucket: {backend: {"tile": [...], "ms"}}}}}``, with
family and bucket as in `tiles.GemmShape`. Only `tuning` writes tables: nothing is tuned while a model runs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .tiles import BACKENDS, ROW_STEP, DeviceInfo, GemmShape, Tile, choose_default_tile

VERSION = 1
MAX_ENTRIES = 4096
"""Most entries of a table; a new entry replaces the oldest."""

PACKAGED = Path(__file__).parent / "tables"
FOLDER_VARIABLE = "CALIBRATED_ROUNDING_CACHE"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelConfig:
    """A backend with its tile."""

    backend: str

    tile: Tile

    ms: float | None = None
    """Measured milliseconds; None for a default."""


TableKey = tuple[str, int]
"""Family and bucket of a shape."""

Table = Mapping[TableKey, tuple[KernelConfig, ...]]


def choose_config(backend: str, shape: GemmShape, device: DeviceInfo) -> KernelConfig:
    """Choose how to run a product.

    If no table has the shape's bucket, the nearest bucket of the same N, K and scaling is used instead.

    Args:
        backend: "auto" for the fastest in the tables, or one of `tiles.BACKENDS` for its best tile.
        shape: The product.
        device: Where it runs.

    Returns:
        The tuned configuration, or the default tile if no table knows the shape.
    """
    # Finer than buckets: the number of waves depends on M in steps of the lowest tile.
    m = shape.bucket if shape.m <= ROW_STEP else -(-shape.m // ROW_STEP) * ROW_STEP
    return _choose(backend, m, shape.n, shape.k, shape.block, device, _user_folder())


@lru_cache(maxsize=MAX_ENTRIES)
def _choose(backend: str, m: int, n: int, k: int, block: int | None, device: DeviceInfo, folder: Path) -> KernelConfig:
    shape = GemmShape(m=m, n=n, k=k, block=block)
    tuned = _find_nearest(load_configs(device.arch, folder), shape)
    usable = [config for config in tuned if config.tile.fits(shape.block) and backend in ("auto", config.backend)]
    if usable:
        return min(usable, key=lambda config: config.ms or 0.0)
    return KernelConfig("triton" if backend == "auto" else backend, choose_default_tile(shape, device))


def _find_nearest(table: Table, shape: GemmShape) -> tuple[KernelConfig, ...]:
    buckets = [bucket for family, bucket in table if family == shape.family]
    if not buckets:
        return ()
    nearest = min(buckets, key=lambda bucket: (abs(bucket.bit_length() - shape.bucket.bit_length()), bucket))
    return table[shape.family, nearest]


@lru_cache(maxsize=8)
def load_configs(arch: str, folder: Path) -> Table:
    """Load the packaged table of an architecture with the user's entries over it; once per process.

    Args:
        arch: Such as "sm90".
        folder: Of the user's tables.
    """
    return {**read_table(PACKAGED / f"{arch}.json"), **read_table(folder / f"{arch}.json")}


def clear_caches() -> None:
    """Have tables read again, after one was written."""
    load_configs.cache_clear()
    _choose.cache_clear()
    _user_folder.cache_clear()


def user_table_path(arch: str) -> Path:
    """Return the path of the user's own table of an architecture."""
    return _user_folder() / f"{arch}.json"


@lru_cache(maxsize=1)
def _user_folder() -> Path:
    """Return the folder of the environment variable `FOLDER_VARIABLE`, else the platform's cache folder."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    home = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return Path(home or Path.home() / ".cache") / "calibrated_rounding" / "kernels"


def read_table(path: Path) -> dict[TableKey, tuple[KernelConfig, ...]]:
    """Read a table; empty if there is none. An unreadable table is empty too, and named in the log."""
    try:
        return _parse_table(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("The tuned table %s is not used, it cannot be read: %s.", path, error)
        return {}


def write_table(path: Path, table: Table, head: Mapping[str, str]) -> None:
    """Write a table; it appears whole or not at all.

    Args:
        path: Of the JSON file; its folder is created.
        table: Entries; beyond `MAX_ENTRIES` the oldest are dropped.
        head: "arch", "device" and "triton".

    Raises:
        OSError: The file cannot be written.
    """
    entries: dict[str, dict[str, Any]] = {}
    for (family, bucket), configs in list(table.items())[-MAX_ENTRIES:]:
        entries.setdefault(family, {})[str(bucket)] = {
            config.backend: {"tile": list(dataclasses.astuple(config.tile)), "ms": config.ms} for config in configs
        }
    document = {"version": VERSION, **head, "entries": entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
        json.dump(document, file, indent=1)
    os.replace(file.name, path)


def _parse_table(document: Any) -> dict[TableKey, tuple[KernelConfig, ...]]:
    if document["version"] != VERSION:
        raise ValueError(f"its version is {document['version']}, not {VERSION}")
    return {
        (family, int(bucket)): tuple(_parse_config(backend, fields) for backend, fields in configs.items())
        for family, buckets in document["entries"].items()
        for bucket, configs in buckets.items()
    }


def _parse_config(backend: str, fields: Mapping[str, Any]) -> KernelConfig:
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown")
    return KernelConfig(backend, _parse_tile(fields["tile"]), float(fields["ms"]))


def _parse_tile(values: Sequence[Any]) -> Tile:
    names = [field.name for field in dataclasses.fields(Tile)]
    return Tile(**dict(zip(names, map(int, values), strict=True)))
