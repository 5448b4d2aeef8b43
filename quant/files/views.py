"""A tensor's memory as plain bytes."""

from __future__ import annotations

import torch


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor of any shape and dtype, without a copy, as a flat writable view."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
