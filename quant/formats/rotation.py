"""Group-wise Hadamard rotation of a weight's input dimension (ConvRot, arXiv 2512.03673).

ComfyUI's ``convrot`` multiplies each group of 16, 64 or 256 input channels by the normalised regular Hadamard matrix.
The matrix is its own inverse, so rotating twice gives the weight back.
"""

from __future__ import annotations

from torch import Tensor

from ...kernels import eager
from ..errors import RecipeError

GROUP_SIZES = (256, 64, 16)
"""Sizes that ComfyUI's kernels rotate by, largest first: the larger the group, the wider an outlier is spread."""


def rotate(weight: Tensor, group: int, out: Tensor | None = None) -> Tensor:
    """Rotate a weight; its own inverse.

    Args:
        weight: Float32 ``[N, K]``, contiguous; or input rows ``[R, K]``.
        group: One of `GROUP_SIZES`; divides K.
        out: Where to write the result, contiguous; None: in memory of its own.

    Raises:
        RecipeError: ComfyUI does not run this group size.
    """
    if group not in GROUP_SIZES:
        raise RecipeError(f"Rotation group {group} is not one that ComfyUI runs; choose 16, 64 or 256.")
    return eager.rotate(weight, group, out)


def largest_group(width: int, limit: int) -> int | None:
    """Return the largest group size up to ``limit`` that divides ``width``, or None."""
    return next((size for size in group_sizes(width) if size <= limit), None)


def group_sizes(width: int) -> list[int]:
    """Return the group sizes that divide ``width``, largest first."""
    return [size for size in GROUP_SIZES if width % size == 0]
