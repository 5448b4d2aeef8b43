"""How long earlier runs took on this machine, so that a plan can say how long it will take.

Kept in ComfyUI's user folder: seconds for each unit of work, by device, formats and rounding, of the latest run alone.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import folder_paths

from ...quant import Recipe
from ...quant.errors import CheckpointError
from ...quant.files.text_file import write_text
from ..host.machine import device_title

Shape = tuple[int, ...]

WORK: Mapping[str, Callable[[int, int], int]] = {
    "nearest": lambda rows, columns: rows * columns,
    "calibrated": lambda rows, columns: (rows + columns) * columns**2,
}
"""Rounding -> what the time of a weight ``[N, K]`` grows with; other roundings depend on too much else."""


def remember(recipe: Recipe, devices: Sequence[str], shapes: Iterable[Shape], seconds: float) -> None:
    """Keep the time of a run that rounded weights of these shapes."""
    work = _count_work(recipe, shapes)
    if not work or seconds <= 0:
        return
    with contextlib.suppress(OSError, CheckpointError):  # a full or read-only disk costs the estimate alone
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_text(_path(), json.dumps(_read() | {_key(recipe, devices): seconds / work}))


def expect(recipe: Recipe, devices: Sequence[str], shapes: Iterable[Shape]) -> float | None:
    """Seconds that a run will take; None if nothing comparable ran here."""
    pace = _read().get(_key(recipe, devices))
    return None if pace is None else pace * _count_work(recipe, shapes) or None


def _count_work(recipe: Recipe, shapes: Iterable[Shape]) -> int:
    measure = WORK.get(recipe.rounding, lambda rows, columns: 0)
    return sum(measure(shape[0], shape[1]) for shape in shapes)


def _key(recipe: Recipe, devices: Sequence[str]) -> str:
    title = device_title() if "cpu" not in devices else "CPU"
    several = [f"{len(devices)} devices"] if len(devices) > 1 else []
    return ", ".join([title, *several, *recipe.candidates, recipe.rounding])


def _read() -> dict[str, float]:
    try:
        kept = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    items = kept.items() if isinstance(kept, dict) else ()
    return {key: pace for key, pace in items if isinstance(pace, float) and 0 < pace < float("inf")}


def _path() -> Path:
    return Path(os.path.join(folder_paths.get_user_directory(), "calibrated_rounding", "durations.json"))
