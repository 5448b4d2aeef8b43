"""Rounding methods: which of the two grid points around a scaled weight becomes its code."""

from .nearest import round_nearest
from .svd import OPTIMIZERS, SvdResult, SvdSettings, round_svd

__all__ = ["OPTIMIZERS", "SvdResult", "SvdSettings", "round_nearest", "round_svd"]
