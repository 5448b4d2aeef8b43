"""One rank of benchmarks/scaling.py: quantizes a file, and writes how long its parts took.

python benchmarks/_rank.py SOURCE TARGET RECIPE.json CALIBRATION PARTS.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

STARTED = time.time()

from calibrated_rounding.quant import Recipe, engine, quantize_file  # noqa: E402
from calibrated_rounding.quant.calibration.calibration import Calibration  # noqa: E402
from calibrated_rounding.quant.execution import Execution  # noqa: E402
from calibrated_rounding.quant.files import staging  # noqa: E402
from calibrated_rounding.quant.files.reader import Checkpoint  # noqa: E402
from calibrated_rounding.quant.workers.ranks import Ranks, join_ranks  # noqa: E402

PARTS = {
    "hash": (Checkpoint, "sha256"),
    "layers": (Execution, "execute"),
    "allocation": (staging.StagedFile, "create"),
    "verification": (engine, "verify_planned"),
    "flush": (staging.StagedFile, "flush"),
    "flush and rename": (staging.StagedFile, "publish"),
}
"""What is timed, by name."""


def main() -> None:
    source, target, recipe, calibration, parts = sys.argv[1:]
    seconds = dict.fromkeys(PARTS, 0.0)
    for name, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, _timed(getattr(owner, attribute), name, seconds))
    with join_ranks() as ranks:
        joined = time.time()
        _quantize(source, target, recipe, calibration, ranks)
        ended = time.time()
        if ranks.rank == 0:
            times = seconds | {"start-up": joined - STARTED, "run": ended - joined}
            Path(parts).write_text(json.dumps(times), encoding="utf-8")


def _quantize(source: str, target: str, recipe: str, calibration: str, ranks: Ranks) -> None:
    statistics = Calibration.load(calibration) if calibration else None
    settings = Recipe.from_dict(json.loads(Path(recipe).read_text(encoding="utf-8")))
    quantize_file(source, target, settings, ranks=ranks, statistics=statistics, force=True)


def _timed(function: Callable[..., Any], name: str, seconds: dict[str, float]) -> Callable[..., Any]:
    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - started

    return timed


if __name__ == "__main__":
    main()
