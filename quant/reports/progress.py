"""Progress of a run, as callbacks get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .report import LayerReport


@dataclass(frozen=True)
class Progress:
    """What a progress callback gets, before the first layer and after each.

    done and total count layers; weights_done and weights_total count their weights, which is what time goes by.
    """

    done: int
    total: int
    weights_done: int
    weights_total: int
    next_layer: str | None
    last: LayerReport | None

    @property
    def fraction(self) -> float:
        return self.weights_done / self.weights_total if self.weights_total else 1.0


OnProgress = Callable[[Progress], None]
Cancel = Callable[[], bool]
