"""Rounding methods: which of the grid points around a scaled weight becomes its code."""

from .calibrated import round_calibrated
from .nearest import round_nearest
from .svd import SvdResult, round_svd

__all__ = ["SvdResult", "round_calibrated", "round_nearest", "round_svd"]
