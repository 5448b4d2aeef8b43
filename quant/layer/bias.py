"""Bias correction: b' = b + E[x (W - W_q)^T], so that the layer's mean output equals the float layer's.

With ``y = x W^T + b`` the quantized layer's mean error is ``E[x] (W - W_q)^T``, which the bias can absorb exactly
(Nagel et al., arXiv 1906.04721, section 4.2). Only the mean of the inputs matters: with a mean of zero there is nothing
to correct.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LayerError
from ..files.tensors import is_finite

SYNTHETIC_ROWS = 3072
"""Rows of N(0, 1) that stand for the inputs if none were measured and the recipe asks for synthetic inputs."""


def correct(name: str, bias: Tensor, weight_error: Tensor, input_mean: Tensor) -> Tensor:
    """The corrected bias, in the dtype of the old one.

    Args:
        name: of the bias.
        bias: ``[N]``.
        weight_error: W_q - W, float32 ``[N, K]`` in the basis of the inputs (not rotated, not padded).
        input_mean: float32 ``[K]``.

    Raises:
        LayerError: the result overflows.
    """
    corrected = (bias.to(torch.float32) - weight_error @ input_mean).to(bias.dtype)
    if not is_finite(corrected) and is_finite(bias):
        raise LayerError(
            f"The bias '{name}' overflows when it is corrected, as the inputs or the error of its layer are too large; "
            "turn bias correction off, or keep the layer with exclude."
        )
    return corrected


def synthetic_mean(width: int, generator: torch.Generator) -> Tensor:
    """Mean of `SYNTHETIC_ROWS` rows of N(0, 1), float32 ``[width]``: drawn directly, with its variance 1 / rows."""
    return torch.randn(width, generator=generator).div_(SYNTHETIC_ROWS**0.5)
