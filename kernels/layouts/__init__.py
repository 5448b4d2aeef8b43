"""QuantizedTensor layouts over the kernels, known to comfy-kitchen from the first import on."""

from __future__ import annotations

import torch
from comfy_kitchen.tensor import QuantizedTensor, base
from torch import Tensor

from . import operations
from .blockwise import BLOCK_SIZE, NAME, PACK, BlockWiseINT8Layout

__all__ = ["BLOCK_SIZE", "NAME", "PACK", "BlockWiseINT8Layout", "is_own", "register", "tensor"]


def register() -> None:
    """Make the layout known under `NAME`, unless another pack has taken the name."""
    if base.LAYOUTS.setdefault(NAME, BlockWiseINT8Layout) is BlockWiseINT8Layout:
        operations.register()


def is_own() -> bool:
    """Whether `NAME` stands for this pack's layout, from this import of it or another."""
    return getattr(base.LAYOUTS.get(NAME), "PACK", None) == PACK


def tensor(codes: Tensor, scale: Tensor, dtype: torch.dtype, block_size: int = BLOCK_SIZE) -> QuantizedTensor:
    """A weight ``[N, K]`` that computes in ``dtype``, of the layout that `NAME` stands for."""
    layout = base.LAYOUTS[NAME]
    params = layout.Params(scale=scale, orig_dtype=dtype, orig_shape=tuple(codes.shape), block_size=block_size)
    return QuantizedTensor(codes, NAME, params)
