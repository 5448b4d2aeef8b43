"""Rotating bfloat16 weights in groups of 256 by small products, with the bits of ComfyUI's product.

The Hadamard matrix of 256 is the Kronecker product of two of 16, so a group, as a matrix X of 16 x 16, becomes H X H:
an eighth of the operations. Float32 sums depend on their order in general. They do not if every term is a multiple of a
number u, and neither the positive nor the negative terms add up to more than 2^24 u: every partial sum is exact then.
Both are at most half of what the magnitudes and the result add up to. Most groups of weights of 8 significant bits
fulfil that; groups that may not are multiplied by the whole matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.eager.rotation import hadamard
from ..formats.rotation import rotate
from .workspace import Workspace

GROUP, SIDE = 256, 16
FEWEST_GROUPS = 64
"""Fewer are multiplied by the whole matrix, of which libraries sum very few rows in another order."""
MARGIN = 1 + 2.0**-10
"""More than the relative error of a sum of magnitudes, and of a result relative to it."""
SMALLEST_UNIT = 2.0**-100
"""Above it, nothing that is computed of a group is subnormal."""
LARGEST_TOTAL = 2.0**120
"""Below it, nothing overflows."""


def rotate_exactly(stored: Tensor, weight: Tensor, workspace: Workspace) -> Tensor:
    """Return the bits of ``rotate(weight, 256)``.

    Args:
        stored: bfloat16 ``[N, K]`` on the CPU; K is a multiple of 256.
        weight: The same values, float32, contiguous.
        workspace: Holds the result until it is taken again.
    """
    result = workspace.take("rotated", weight.shape)
    groups, rotated = weight.view(-1, GROUP), result.view(-1, GROUP)
    if len(groups) < FEWEST_GROUPS:
        return rotate(weight, GROUP, out=result)
    half = workspace.take("values", weight.shape)
    limits = _find_limits(stored, groups, half.view(-1, GROUP), result)
    small, squares = hadamard(SIDE, weight.device), (len(groups), SIDE, SIDE)
    torch.mm(weight.view(-1, SIDE), small, out=half.view(-1, SIDE))
    torch.bmm(small.expand(squares), half.view(squares), out=result.view(squares))
    largest = torch.maximum(rotated.amax(dim=1), rotated.amin(dim=1).neg_())
    inexact = torch.nonzero((largest <= limits).logical_not_()).view(-1)
    if 2 * len(inexact) > len(groups):
        return rotate(weight, GROUP, out=result)
    if len(inexact):
        missing = max(0, FEWEST_GROUPS - len(inexact))
        chosen = torch.cat([inexact, inexact[:1].expand(missing)])
        again = torch.index_select(groups, 0, chosen, out=half.view(-1, GROUP)[: len(chosen)])
        whole = rotate(again, GROUP)
        rotated.index_copy_(0, inexact, whole[: len(inexact)])
    return result


def _find_limits(stored: Tensor, groups: Tensor, buffer: Tensor, spare: Tensor) -> Tensor:
    """For each group the largest magnitude of a result up to which all its sums are exact, float32 ``[n]``.

    Below zero where a sum may be inexact anyway. ``buffer`` and ``spare``, float32 of as many values, are overwritten.
    """
    bits = stored.contiguous().view(torch.int16)
    # Without its lowest bit a number is smaller by its unit; by less, and at least half of it, if it is a power of two.
    place = spare.view(-1).view(torch.int16)[: bits.numel()].view(bits.shape)
    shorter = torch.sub(bits, 1, out=place).bitwise_and_(bits)
    units = buffer.copy_(shorter.view(torch.bfloat16).view(-1, GROUP)).sub_(groups).abs_()
    unit = units.amin(dim=1)
    total = torch.abs(groups, out=units).sum(dim=1)
    limits = (unit * (2.0**25 / MARGIN) - total * MARGIN) / (MARGIN * GROUP**0.5)
    return torch.where((unit >= SMALLEST_UNIT) & (total < LARGEST_TOTAL), limits, -1.0)
