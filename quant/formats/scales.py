"""Choosing scales: the absolute maximum, or the multiple of it that leaves the least squared error.

Scales are float32 in the shape of the format's granularity. A scale is never zero: if all weights that share it are
zero it is 1 (which is exact), so that nothing downstream divides by zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .grids import to_float32

if TYPE_CHECKING:
    from .scaled import ScaledFormat

SMALLEST = 2.0**-126
"""Smallest normal float32, and the smallest power of two that MXFP8's decoders do not read as zero."""

CANDIDATES = tuple(1.0 - 0.02 * i for i in range(26))
"""Multiples of the absolute maximum that the search tries: from no clipping down to clipping at half of it."""

POWER_OF_TWO_CANDIDATES = (1.0, 0.5)


def absmax(weight: Tensor, fmt: ScaledFormat) -> Tensor:
    """Scales that map the largest magnitude of a weight to the grid's last point.

    Args:
        weight: float32 ``[N, K]``.
        fmt: the format.

    Returns:
        float32 in the granularity's shape.
    """
    return from_amax(fmt.granularity.amax(weight), fmt)


def from_amax(amax: Tensor, fmt: ScaledFormat) -> Tensor:
    """Scales from the absolute maxima, in the granularity's shape, of the weights that share each scale."""
    scale = amax.to(torch.float32) / fmt.grid.maximum
    if fmt.power_of_two:
        mantissa, exponent = torch.frexp(scale)
        # The next power of two up; frexp writes exact powers as 0.5 * 2^e.
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))
    scale = scale.clamp(min=SMALLEST)
    return torch.where(amax > 0, scale, torch.ones_like(scale))


def least_error(weight: Tensor, fmt: ScaledFormat) -> Tensor:
    """Scales among `CANDIDATES` x `absmax` with the least sum of squared errors after nearest rounding.

    Never worse than `absmax`, which is the first candidate and wins ties.

    Args:
        weight: float32 ``[N, K]``.
        fmt: the format.

    Returns:
        float32 in the granularity's shape.
    """
    base = absmax(weight, fmt)
    best, best_error = base, None
    for candidate in POWER_OF_TWO_CANDIDATES if fmt.power_of_two else CANDIDATES:
        scale = (base * candidate).clamp(min=SMALLEST)
        wide = fmt.granularity.expand(scale, (weight.shape[0], weight.shape[1]))
        rounded = to_float32(fmt.grid.encode(weight / wide)).mul_(wide)
        error = fmt.granularity.sum(rounded.sub_(weight).square_())
        if best_error is None:
            best_error = error
            continue
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    return best


SCALE_METHODS: Mapping[str, Callable[[Tensor, ScaledFormat], Tensor]] = {"absmax": absmax, "mse": least_error}
