"""Round to nearest: what every other method is measured against and falls back to."""

from __future__ import annotations

from torch import Tensor

from ..formats import Format


def round_nearest(weight: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """Codes ``[N, K]`` (the format's dtype) nearest to float32 ``weight [N, K]``; float32 ``scale`` as `Format` shapes
    it.
    """
    return fmt.grid.encode(weight / fmt.granularity.expand(scale, (weight.shape[0], weight.shape[1])))
