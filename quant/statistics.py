"""What is known of a layer's inputs; measured by a calibration, asked for by bias correction and static input
scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class InputStatistics:
    """mean: float32 ``[K]``, the average input row. absmax: the largest magnitude of any input. None: not measured."""

    mean: Tensor | None = None
    absmax: float | None = None


Statistics = Mapping[str, InputStatistics]
"""By layer name, as the model's keys have it without ``.weight``."""
