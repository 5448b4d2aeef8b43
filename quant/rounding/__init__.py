"""Rounding methods: pure functions from a weight, its scales and a Hessian to codes."""

from .calibrated import round_calibrated
from .nearest import round_nearest
from .svd import SvdResult, round_svd

__all__ = ["SvdResult", "round_calibrated", "round_nearest", "round_svd"]
