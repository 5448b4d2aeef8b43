"""Memory for large tensors, which is used again when nothing refers to a tensor any longer."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST = 1 << 20
"""Bytes of a tensor for which getting memory from the system takes noticeable time."""


class BufferPool:
    """Makes CPU tensors in memory of their own, which comes from earlier tensors if they no longer exist.

    The system clears fresh memory page by page, which takes longer than filling it from a cached file. One buffer is
    kept idle at most.
    """

    def __init__(self) -> None:
        self._idle: deque[Tensor] = deque(maxlen=1)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As `torch.empty`."""
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        if nbytes < SMALLEST:
            return torch.empty(shape, dtype=dtype)
        memory = self._take(nbytes)
        # The tensor refers to this array, and the array to the memory, for as long as the tensor or a view of it lives.
        array = memory.numpy()[:nbytes]
        weakref.finalize(array, self._idle.append, memory).atexit = False
        return torch.from_numpy(array).view(dtype).view(tuple(shape))

    def _take(self, nbytes: int) -> Tensor:
        """Bytes of an idle buffer of about this size, or new ones; a buffer that is not of use now makes room."""
        while self._idle:
            memory = self._idle.popleft()
            if nbytes <= len(memory) <= 2 * nbytes:
                return memory
        return torch.empty(nbytes, dtype=torch.uint8)
