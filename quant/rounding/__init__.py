"""Rounding methods: which of the two grid points around a scaled weight becomes its code."""

from .calibrated import FEWEST_ROWS, CalibratedSettings, round_calibrated
from .nearest import round_nearest
from .svd import OPTIMIZERS, SvdResult, SvdSettings, round_svd

__all__ = [
    "FEWEST_ROWS",
    "OPTIMIZERS",
    "CalibratedSettings",
    "SvdResult",
    "SvdSettings",
    "round_calibrated",
    "round_nearest",
    "round_svd",
]
