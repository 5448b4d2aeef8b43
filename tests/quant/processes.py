"""What tests hand to the processes of the package that they start."""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
"""Imports as here, and one thread for each process."""
