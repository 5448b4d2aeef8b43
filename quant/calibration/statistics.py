"""Statistics of a layer's inputs: what calibrated rounding, bias correction and static input scales learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import QuantError

FINGERPRINT_VALUES = 1024
"""About how many values of a weight its fingerprint is made of."""

FEWEST_ROWS = 8
"""Fewer calibration rows of a layer are not used: no codes are learned from them, and no output error is measured."""

LARGEST = float(torch.finfo(torch.float32).max)
"""Limit of every measured number: what float32 holds."""


@dataclass(frozen=True, kw_only=True)
class InputStatistics:
    """Statistics of one layer's inputs; None where a statistic was not measured.

    Raises:
        QuantError: if `absmax` or `sensitivity` is negative, infinite or NaN, or `mean` holds infinity or NaN.
    """

    mean: Tensor | None = None
    """float32 ``[K]``: the average input row."""
    absmax: float | None = None
    """The largest magnitude of any input."""
    rows: Tensor | None = None
    """``[R, K]``, usually in 16 bits: the calibration rows, a uniform sample of all input rows."""
    count: int = 0
    """Number of input rows that the layer has seen."""
    fingerprint: str | None = None
    """`fingerprint` of the layer's own weight, without patches."""
    patched_fingerprint: str | None = None
    """`fingerprint` of the weight that ran, with patches such as LoRAs merged; None if it had no patch."""
    sensitivity: float | None = None
    """Mean squared change of the model's output per unit of mean squared norm by which the layer's output rows change
    (`measure_sensitivities`).
    """

    def __post_init__(self) -> None:
        for name, value in (("absmax", self.absmax), ("sensitivity", self.sensitivity)):
            if value is not None and not 0 <= value <= LARGEST:
                raise QuantError(f"A layer's {name} is {value}, which is no measured value; record the inputs again.")
        if self.mean is not None and not bool(self.mean.isfinite().all()):
            raise QuantError("The mean of a layer's inputs holds NaN or infinity; record the inputs again.")

    @property
    def has_rows(self) -> bool:
        """Whether there are enough calibration rows to use."""
        return self.rows is not None and len(self.rows) >= FEWEST_ROWS

    def fits(self, weight: Tensor) -> bool:
        """Whether ``weight [N, K]`` is the recorded layer's, with or without the patches that it ran with.

        A layer without a fingerprint takes any weight of its width.
        """
        if not self.fits_width(weight.shape):
            return False
        return self.fingerprint is None or fingerprint(weight) in (self.fingerprint, self.patched_fingerprint)

    def fits_width(self, shape: Sequence[int]) -> bool:
        """Whether a weight of ``shape`` takes inputs as wide as the measured ones."""
        widths = [tensor.shape[-1] for tensor in (self.mean, self.rows) if tensor is not None]
        return all(width == shape[-1] for width in widths)


NO_STATISTICS = InputStatistics()
"""Of a layer that was not measured."""

Statistics = Mapping[str, InputStatistics]
"""Layer name -> statistics. Names are the checkpoint's keys without ``.weight``, with or without the model's prefix."""


def fingerprint(weight: Tensor) -> str:
    """Identify a weight, whatever dtype it is stored in.

    Args:
        weight: ``[N, K]``, any floating dtype, on any device.

    Returns:
        16 hexadecimal digits: a hash of the shape and of about `FINGERPRINT_VALUES` evenly spread values in bfloat16.
    """
    flat = weight.detach().reshape(-1)
    spread = (
        flat[:: max(1, flat.numel() // FINGERPRINT_VALUES)].contiguous().to("cpu", torch.bfloat16).view(torch.uint8)
    )
    digest = hashlib.sha256(repr(tuple(weight.shape)).encode())
    digest.update(spread.numpy().tobytes())
    return digest.hexdigest()[:16]
