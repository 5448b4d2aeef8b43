"""Group-wise Hadamard rotation of a weight's input dimension (ConvRot, arXiv 2512.03673).

ComfyUI's ``convrot`` multiplies each group of 16, 64 or 256 inputs by the normalised *regular* Hadamard matrix that is
the Kronecker power of one 4 x 4 block. The matrix is symmetric and its own inverse, so rotating twice gives the weight
back.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..errors import RecipeError

GROUP_SIZES = (256, 64, 16)
"""Sizes that the host's kernels rotate by, largest first: the larger the group, the wider an outlier is spread."""


@lru_cache(maxsize=8)
def hadamard(size: int, device: torch.device) -> Tensor:
    """Normalised regular Hadamard matrix, float32 ``[size, size]``; ``size`` is one of `GROUP_SIZES`.

    Raises RecipeError for any other size.
    """
    if size not in GROUP_SIZES:
        raise RecipeError(f"Rotation group {size} is not one that ComfyUI runs; choose 16, 64 or 256.")
    block: Tensor = torch.ones(4, 4, device=device) - 2 * torch.eye(4, device=device).flip(1)
    matrix = block
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, block)
    return matrix.div(size**0.5)


def rotate(weight: Tensor, group: int) -> Tensor:
    """Rotate float32 ``weight [N, K]`` in groups of ``group`` inputs, K % group == 0; its own inverse."""
    return (weight.view(-1, group) @ hadamard(group, weight.device)).view(weight.shape)


def largest_group(width: int, wanted: int) -> int | None:
    """The largest group size up to ``wanted`` that divides ``width``, or None."""
    return next((size for size in group_sizes(width) if size <= wanted), None)


def group_sizes(width: int) -> list[int]:
    """The group sizes that divide ``width``, largest first."""
    return [size for size in GROUP_SIZES if width % size == 0]
