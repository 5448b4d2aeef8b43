"""Error feedback: round the inputs of a layer one by one and let the later ones make up for the error so far.

This is the closed-form solver of the GPTQ family (Frantar et al., arXiv 2210.17323, section 3): for the metric
``||E L||`` with ``H = L L^T``, the best correction of the columns not yet rounded follows from the Cholesky factor of
``H^-1``. Columns are handled in blocks, so that nearly all the work is matrix products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..formats import Format

BLOCK = 128


def round_feedback(weight: Tensor, scale: Tensor, fmt: Format, metric: Tensor, tick: Callable[[], None]) -> Tensor:
    """Codes for float32 ``weight [N, K]`` that make ``tr(E H E^T)`` small, E being the error of the dequantized weight.

    ``metric`` is H, float32 ``[K, K]``, symmetric positive definite. A code is one of the two grid points around the
    uncorrected weight, so none moves by more than one step from nearest. ``tick`` is called once a block.
    """
    shape = (weight.shape[0], weight.shape[1])
    wide = fmt.granularity.expand(scale, shape).expand(shape)
    lower, upper = fmt.grid.below(weight / wide), fmt.grid.above(weight / wide)
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(metric)), upper=True)
    target, rounded = weight.clone(), torch.empty_like(weight)
    for start in range(0, shape[1], BLOCK):
        tick()
        block = slice(start, min(start + BLOCK, shape[1]))
        errors = _round_block(target[:, block], wide[:, block], lower[:, block], upper[:, block],
                              factor[block, block], rounded[:, block])  # fmt: skip
        target[:, block.stop :] -= errors @ factor[block, block.stop :]
    return fmt.grid.encode(rounded)


def _round_block(target: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, factor: Tensor, out: Tensor) -> Tensor:
    """Round a block's columns in turn, correcting the rest of the block; gives the errors over the factor's
    diagonal.
    """
    errors = torch.empty_like(target)
    for i in range(target.shape[1]):
        wanted = target[:, i] / scale[:, i]
        out[:, i] = torch.where(wanted - lower[:, i] < upper[:, i] - wanted, lower[:, i], upper[:, i])
        errors[:, i] = (target[:, i] - out[:, i] * scale[:, i]) / factor[i, i]
        target[:, i + 1 :] -= errors[:, i : i + 1] * factor[i, i + 1 :]
    return errors
