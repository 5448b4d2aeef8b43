"""Rounding methods: which of the grid points around a scaled weight becomes its code."""

from .calibrated import CalibratedSettings, round_calibrated
from .held_out import keep_better
from .nearest import round_nearest
from .svd import METRICS, OPTIMIZERS, SvdResult, SvdSettings, round_svd

__all__ = [
    "METRICS",
    "OPTIMIZERS",
    "CalibratedSettings",
    "SvdResult",
    "SvdSettings",
    "keep_better",
    "round_calibrated",
    "round_nearest",
    "round_svd",
]
