"""How a file was made, as the header's text field that says so."""

from __future__ import annotations

PROVENANCE_KEY = "calibrated_rounding"
