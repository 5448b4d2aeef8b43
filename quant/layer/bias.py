"""Bias correction: b' = b + E[x (W - W_q)^T], so that the layer's mean output is that of the float layer.

With ``y = x W^T + b`` the quantized layer's mean error is ``E[x] (W - W_q)^T``, which the bias can absorb exactly
(Nagel et al., arXiv 1906.04721, section 4.2). Only the mean of the inputs matters: inputs of zero mean have nothing to
correct.
"""

from __future__ import annotations

import torch
from torch import Tensor

SYNTHETIC_ROWS = 3072
"""Rows of N(0, 1) drawn where no input was measured and the recipe asks for synthetic ones."""


def correct(bias: Tensor, weight_error: Tensor, input_mean: Tensor) -> Tensor:
    """The corrected bias ``[N]`` in the dtype of ``bias``.

    ``weight_error`` is W_q - W, float32 ``[N, K]`` in the basis of the inputs; ``input_mean`` is float32 ``[K]``.
    """
    return (bias.to(torch.float32) - weight_error @ input_mean).to(bias.dtype)


def synthetic_mean(width: int, generator: torch.Generator) -> Tensor:
    """Mean of `SYNTHETIC_ROWS` rows of N(0, 1), float32 ``[width]``: drawn directly, with its variance 1 / rows."""
    return torch.randn(width, generator=generator).div_(SYNTHETIC_ROWS**0.5)
