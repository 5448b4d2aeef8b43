"""Dtype and shape of a tensor, known before it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..parallel import blocks, run_all

_PIECE = 1 << 20
_NOT_FINITE = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}
"""The least magnitude, as bits, that is infinity or NaN."""

WEIGHT = ".weight"
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class TensorSpec(Protocol):
    """Dtype and shape of a tensor, known before it is read."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Spec:
    """A `TensorSpec` of its own."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


BANK = re.compile(r"(^|[._])experts?([._]|$)")


def is_bank(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a bank of experts: a weight for each of them, stacked (``comfy/ops.py`` MoEExperts)."""
    return len(shape) == 3 and BANK.search(name) is not None


def is_layer(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a layer's weight matrix, by name and shape; biases, norms and convolutions are not."""
    return name.endswith(WEIGHT) and len(shape) == 2


def is_finite(*tensors: Tensor) -> bool:
    """Whether tensors of one device hold neither NaN nor infinity.

    They are looked at in pieces, as a mask of a layer would take its memory; a GPU is waited for once. One-byte types
    are FP8 and, stored as bytes, E8M0, of which ComfyUI reads 255 as NaN; whole numbers are finite.
    """
    flags = [flag for tensor in tensors for flag in _find_finite_pieces(tensor)]
    return not flags or bool(torch.stack(flags).all())


def _find_finite_pieces(tensor: Tensor) -> list[Tensor]:
    """Whether each piece is finite, as tensors; none for whole numbers."""
    if tensor.dtype not in _NOT_FINITE and not tensor.dtype.is_floating_point:
        return []
    flat = tensor.detach().reshape(-1)
    return run_all(lambda piece: _is_finite_piece(flat[piece]), blocks(len(flat), _PIECE))


def _is_finite_piece(piece: Tensor) -> Tensor:
    if piece.dtype in _NOT_FINITE:
        return (piece.view(torch.uint8) & 0x7F < _NOT_FINITE[piece.dtype]).all()
    return piece.isfinite().all()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
