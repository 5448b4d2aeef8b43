"""Counting finished layers, of all ranks, for the progress of a run."""

from __future__ import annotations

from collections.abc import Mapping

from ..workers.ranks import Ranks
from .entries import LayerReport
from .progress import OnProgress, Progress


class Tally:
    """Counts layers as they are finished, and reports the progress of all ranks."""

    def __init__(self, weights: Mapping[str, int], ranks: Ranks, on_progress: OnProgress | None) -> None:
        """
        Args:
            weights: number of weights of each layer, by name, in the plan's order.
            ranks: who works on them.
            on_progress: called by `start`, by `add`, and by `refresh` where other ranks have finished layers.
        """
        self._weights, self._ranks, self._on_progress = weights, ranks, on_progress
        self._waiting = dict.fromkeys(weights)
        self._reported = 0

    def start(self) -> None:
        self._report(None)

    def add(self, layer: LayerReport) -> None:
        del self._waiting[layer.name]
        self._ranks.count("weights", self._weights[layer.name])
        self._ranks.count("layers", 1)
        self._report(layer)

    def refresh(self) -> None:
        if self._on_progress is not None and self._ranks.count("layers") > self._reported:
            self._report(None)

    def _report(self, last: LayerReport | None) -> None:
        if self._on_progress is None:
            return
        self._reported = self._ranks.count("layers")
        progress = Progress(
            done=self._reported,
            total=len(self._weights),
            weights_done=self._ranks.count("weights"),
            weights_total=sum(self._weights.values()),
            next_layer=next(iter(self._waiting), None),
            last=last,
        )
        self._on_progress(progress)
