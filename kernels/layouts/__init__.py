"""QuantizedTensor layouts over the kernels. Importing this imports comfy-kitchen; `register` makes it know them."""

from __future__ import annotations

import torch
from comfy_kitchen.tensor import QuantizedTensor, base
from torch import Tensor

from . import operations
from .blockwise import BLOCK_SIZE, NAME, PACK, BlockWiseINT8Layout

__all__ = ["BLOCK_SIZE", "NAME", "PACK", "BlockWiseINT8Layout", "is_own", "make_tensor", "register"]


def register() -> None:
    """Make the layout known to comfy-kitchen as `NAME`, unless another pack has taken the name."""
    if base.LAYOUTS.setdefault(NAME, BlockWiseINT8Layout) is BlockWiseINT8Layout:
        operations.register()


def is_own() -> bool:
    """Return whether `NAME` is registered for this pack's layout, by this import of the pack or another."""
    return getattr(base.LAYOUTS.get(NAME), "PACK", None) == PACK


def make_tensor(codes: Tensor, scale: Tensor, dtype: torch.dtype, block_size: int = BLOCK_SIZE) -> QuantizedTensor:
    """Make a quantized weight in the layout that is registered as `NAME`.

    Args:
        codes: Int8 ``[N, K]``.
        scale: Float32 ``[ceil(N / block_size), ceil(K / block_size)]``.
        dtype: In which the weight computes.
        block_size: Side of a scale block.
    """
    layout = base.LAYOUTS[NAME]
    params = layout.Params(scale=scale, orig_dtype=dtype, orig_shape=tuple(codes.shape), block_size=block_size)
    return QuantizedTensor(codes, NAME, params)
