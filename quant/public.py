"""The public names of the engine, which `quant` exports."""

from __future__ import annotations

from .api import plan_file, quantize_file, quantize_state_dict, quantize_tensor
from .calibration.statistics import InputStatistics
from .errors import (
    AlreadyQuantizedError,
    Cancelled,
    CheckpointError,
    LayerError,
    ProfileError,
    QuantError,
    RecipeError,
    UnloadableError,
)
from .recipe import Recipe, SvdSettings
from .reports.entries import KeptReport, LayerReport
from .reports.progress import Progress
from .reports.report import Report
from .workers.ranks import join_ranks

__all__ = [
    "AlreadyQuantizedError",
    "Cancelled",
    "CheckpointError",
    "InputStatistics",
    "KeptReport",
    "LayerError",
    "LayerReport",
    "ProfileError",
    "Progress",
    "QuantError",
    "Recipe",
    "RecipeError",
    "Report",
    "SvdSettings",
    "UnloadableError",
    "join_ranks",
    "plan_file",
    "quantize_file",
    "quantize_state_dict",
    "quantize_tensor",
]
