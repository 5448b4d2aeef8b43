"""Buffers for blocks of a weight, which a thread uses again for every block of a layer."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """Named buffers of each thread that works on a layer.

    On the CPU, memory that is allocated for each block costs more time than the arithmetic on it, and what is freed
    between results that stay leaves gaps, which grow to several times the blocks. Other devices have an allocator that
    keeps memory, so a buffer is released with its last tensor there.

    Args:
        device: Of the buffers.
        keep: Whether buffers are kept on the CPU; False where other work on a block needs more memory than they.
    """

    def __init__(self, device: torch.device, keep: bool = True) -> None:
        self._device, self._keep = device, keep and device.type == "cpu"
        self._buffers = threading.local()

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor whose values are undefined, until this thread takes the name again; a name has one dtype."""
        size = math.prod(shape)
        if not self._keep:
            return torch.empty(tuple(shape), dtype=dtype, device=self._device)
        buffer: Tensor | None = getattr(self._buffers, name, None)
        if buffer is None or len(buffer) < size:
            buffer = torch.empty(size, dtype=dtype, device=self._device)
            setattr(self._buffers, name, buffer)
        return buffer[:size].view(*shape)
