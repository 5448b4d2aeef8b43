"""Group-wise Hadamard rotation (ConvRot, arXiv 2512.03673), and per-row quantization of rotated activations."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .quantize import act_quant


@lru_cache(maxsize=8)
def hadamard(group: int, device: torch.device) -> Tensor:
    """Make the normalised regular Hadamard matrix that ComfyUI's ``convrot`` multiplies by.

    It is the Kronecker power of one 4 x 4 block: symmetric, and its own inverse.

    Args:
        group: A power of four.
        device: Of the result.

    Returns:
        Float32 ``[group, group]``.
    """
    block: Tensor = torch.ones(4, 4, device=device) - 2 * torch.eye(4, device=device).flip(1)
    matrix = block
    while matrix.shape[0] < group:
        matrix = torch.kron(matrix, block)
    return matrix.div(group**0.5)


def rotate(x: Tensor, group: int, out: Tensor | None = None) -> Tensor:
    """Multiply each group of ``x [..., K]`` by the Hadamard matrix, in float32; K is a multiple of ``group``.

    The result is written to ``out``, float32 and contiguous, if it is not None.
    """
    groups = x.to(torch.float32).reshape(-1, group)
    result = torch.mm(groups, hadamard(group, x.device), out=None if out is None else out.view(-1, group))
    return result.view(x.shape)


def rotate_quant(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Rotate ``x [..., K]`` and quantize it per row.

    Returns:
        Codes int8 ``[..., K]`` and scales float32 ``[..., 1]``.
    """
    return act_quant(rotate(x, group), None)
