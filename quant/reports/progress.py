"""Progress of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .entries import LayerReport


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The argument of a progress callback, which is called before the first layer and after each."""

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
Cancel = Callable[[], bool]
