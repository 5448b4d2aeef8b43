"""What is known of a layer's inputs: measured by a calibration; used by calibrated rounding, bias correction and static
input scales.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FINGERPRINT_VALUES = 1024


@dataclass(frozen=True)
class InputStatistics:
    """What one layer was fed; None: not measured.

    mean: float32 ``[K]``, the average input row. absmax: the largest magnitude of any input. rows: ``[R, K]``, a
    uniform sample of the ``count`` input rows that the layer saw. fingerprint: of the weight that was fed them.
    sensitivity: by how much what the model makes changes, mean square of its values, for a change of the layer's output
    rows by a squared norm of 1 on average (`sensitivity.probe`).
    """

    mean: Tensor | None = None
    absmax: float | None = None
    rows: Tensor | None = None
    count: int = 0
    fingerprint: str | None = None
    sensitivity: float | None = None


NOTHING_KNOWN = InputStatistics()

Statistics = Mapping[str, InputStatistics]
"""By layer name, as the model's keys have it without ``.weight``, with or without the model's prefix."""


def fingerprint(weight: Tensor) -> str:
    """Tells weights apart, whatever dtype they are stored in: a hash of the shape and of evenly spread values."""
    flat = weight.detach().reshape(-1)
    spread = (
        flat[:: max(1, flat.numel() // FINGERPRINT_VALUES)].contiguous().to("cpu", torch.bfloat16).view(torch.uint8)
    )
    digest = hashlib.sha256(repr(tuple(weight.shape)).encode())
    digest.update(spread.numpy().tobytes())
    return digest.hexdigest()[:16]
