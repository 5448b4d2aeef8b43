"""The settings of one run of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from .calibration.statistics import Statistics
from .errors import Cancelled
from .finished import FinishedLayers
from .planning.candidates import KeptFigures
from .recipe import Recipe
from .reports.progress import Cancel, OnProgress
from .workers.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one run."""

    recipe: Recipe
    workers: Workers = field(default_factory=Workers)
    """Who computes the layers."""
    statistics: Statistics = field(default_factory=dict)
    """What a calibration knows of the layers' inputs."""
    on_progress: OnProgress | None = None
    """Called before the first layer and after each."""
    cancel: Cancel | None = None
    """Asked often, also within a layer; True stops the run."""
    force: bool = False
    """Quantize also what ComfyUI would not load: for those who load it with code of their own."""
    finished: FinishedLayers | None = None
    """Where layers are kept until the whole run has ended well; None: nowhere."""
    measured: KeptFigures | None = None
    """Figures of earlier runs that differ in targets and formats alone, which `auto` does not measure again."""
    is_loaded_model: bool = False
    """The source is a model that ComfyUI has loaded, so that its names are ComfyUI's own."""

    def check_cancelled(self) -> None:
        """Raise Cancelled if the caller asked to stop, and RankError if another rank failed."""
        if self.cancel is not None and self.cancel():
            raise Cancelled("Stopped on request; nothing was written.")
        self.workers.ranks.check()
