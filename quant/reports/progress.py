"""Progress of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .entries import LayerReport

Stage = Literal["measuring", "rounding"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The argument of a progress callback, which is called before the first layer of a stage and after each."""

    stage: Stage = "rounding"
    """measuring: layers are tried in several formats or rotations, before the chosen ones are rounded."""
    done: int = 0
    """Layers."""
    total: int = 0
    weights_done: int = 0
    """Weights of these layers; time is proportional to weights."""
    weights_total: int = 0
    next_layer: str | None = None
    last: LayerReport | None = None
    """The layer that was finished last."""

    @property
    def fraction(self) -> float:
        """Share of the weights that is done."""
        return self.weights_done / self.weights_total if self.weights_total else 1.0


OnProgress = Callable[[Progress], None]


class MeasuringProgress:
    """Counts layers that are measured, of several models one after the other.

    Args:
        weights: For each model, the number of weights of each layer by the weight's key.
        on_progress: Called at the start of each model and after each layer.
    """

    def __init__(self, weights: Sequence[Mapping[str, int]], on_progress: OnProgress | None) -> None:
        self._weights, self._on_progress = list(weights), on_progress
        self._total = sum(map(len, self._weights))
        self._weights_total = sum(sum(model.values()) for model in self._weights)
        self._done = self._weights_done = 0
        self._model: Mapping[str, int] = {}

    def begin(self, keys: Iterable[str]) -> None:
        """Go on to the next model; the layers that it lists are measured, all others are left out of the count."""
        whole = self._weights.pop(0) if self._weights else {}
        self._model = {key: whole.get(key, 0) for key in keys}
        self._total += len(self._model) - len(whole)
        self._weights_total += sum(self._model.values()) - sum(whole.values())
        self._report()

    def count(self, key: str) -> None:
        self._done += 1
        self._weights_done += self._model[key]
        self._report()

    def _report(self) -> None:
        if self._on_progress is None or not self._total:
            return
        progress = Progress(
            stage="measuring",
            done=self._done,
            total=self._total,
            weights_done=self._weights_done,
            weights_total=self._weights_total,
        )
        self._on_progress(progress)


Cancel = Callable[[], bool]
