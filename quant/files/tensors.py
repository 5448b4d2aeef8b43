"""What is known of a tensor before it is read."""

from __future__ import annotations

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


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
