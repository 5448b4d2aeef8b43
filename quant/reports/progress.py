"""Progress of a run, as callbacks get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .report import LayerReport


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a progress callback gets, before the first layer and after each."""

    done: int = 0
    """Layers."""
    total: int = 0
    weights_done: int = 0
    """Weights of these layers, which time is proportional to."""
    weights_total: int = 0
    next_layer: str | None = None
    last: LayerReport | None = None
    """The layer that was finished last."""

    @property
    def fraction(self) -> float:
        return self.weights_done / self.weights_total if self.weights_total else 1.0


OnProgress = Callable[[Progress], None]
Cancel = Callable[[], bool]
