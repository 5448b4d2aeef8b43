"""Registers the layouts, for tests and as a pytest plugin for comfy-kitchen's own tests."""

from __future__ import annotations

from calibrated_rounding.kernels import layouts

layouts.register()
