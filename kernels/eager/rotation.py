"""Group-wise Hadamard rotation of activations (ConvRot, arXiv 2512.03673) and their per-row quantization."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .quantize import act_quant


@lru_cache(maxsize=8)
def hadamard(group: int, device: torch.device) -> Tensor:
    """Normalised regular Hadamard matrix float32 ``[group, group]``: the Kronecker power of one 4 x 4 block."""
    block: Tensor = torch.ones(4, 4, device=device) - 2 * torch.eye(4, device=device).flip(1)
    matrix = block
    while matrix.shape[0] < group:
        matrix = torch.kron(matrix, block)
    return matrix.div(group**0.5)


def rotate(x: Tensor, group: int) -> Tensor:
    """Floating ``x [..., K]`` rotated in groups of ``group``, K % group == 0, in float32."""
    split = x.to(torch.float32).reshape(*x.shape[:-1], -1, group)
    return (split @ hadamard(group, x.device)).flatten(-2)


def rotate_quant(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Codes int8 ``[..., K]`` and scales float32 ``[..., 1]`` of the rotated ``x``."""
    return act_quant(rotate(x, group), None)
