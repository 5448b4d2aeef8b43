"""Program of test_ending.py."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from calibrated_rounding.nodes.host.running import run_engine
from calibrated_rounding.nodes.host.weights import LoadedWeights
from calibrated_rounding.quant import Cancelled, Progress, Recipe, SvdSettings
from calibrated_rounding.quant.engine import quantize
from calibrated_rounding.quant.files.sinks import FileSink
from calibrated_rounding.quant.run import Run

LONG = SvdSettings(optimizer="original", iterations=10_000)
WENT_ON = "went on"
"""File that a node's thread would make after the engine's end."""


class Observer:
    """Waits for the first layer, and notes how the run ends."""

    def __init__(self) -> None:
        self.started = threading.Event()

    def show(self, progress: list[Progress]) -> None:
        self.started.set()

    def end(self, state: str, message: str = "") -> None:
        pass


def end_while_quantizing(folder: str) -> dict[str, Any]:
    """Return, which ends the interpreter, while the engine learns a layer that takes minutes."""
    weights = LoadedWeights({"layer.weight": torch.randn(2048, 2048)})
    sink, observer = FileSink(Path(folder) / "quantized.safetensors"), Observer()
    recipe = Recipe(format="int8_row", profile="generic", rounding="svd", svd=LONG)

    def work(progress: Any, cancel: Any) -> Any:
        return quantize(weights, sink, Run(recipe=recipe, on_progress=progress, cancel=cancel))

    def run() -> None:
        with suppress(Cancelled):
            run_engine(work, None, observer)
        Path(folder, WENT_ON).touch()

    threading.Thread(target=run, daemon=True).start()
    assert observer.started.wait(60)
    return {"unfinished": [path.suffix for path in Path(folder).iterdir()]}
