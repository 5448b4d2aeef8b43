"""What is known of a tensor before it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

WEIGHT = ".weight"
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class TensorSpec(Protocol):
    """What is known of a tensor before it is read."""

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


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
