from __future__ import annotations

from calibrated_rounding.tests.kernels.layouts import registered  # noqa: F401
