"""What the kernels need to know of a tensor's device and of Triton's version."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..tiles import Device

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton before 3.4 has no descriptors that the host makes
    TensorDescriptor = None

SHARED = {"sm80": 166_912, "sm87": 166_912, "sm90": 232_448, "sm100": 232_448, "sm103": 232_448}
"""Bytes of shared memory that a program may have (CUDA C++ Programming Guide, technical specifications)."""

LEAST_SHARED, LEAST_SHARED_AMD = 101_376, 65_536
"""What every other GPU since compute capability 8.0 has, and AMD's."""

INTERPRETED = Device(arch="interpreter", processors=3, shared=232_448, descriptors=TensorDescriptor is not None)
"""Stands for a GPU where Triton's interpreter runs the kernels: few processors, so that each has several tiles."""


@lru_cache(maxsize=32)
def device_of(device: torch.device) -> Device:
    if device.type == "cpu":
        return INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        arch = properties.gcnArchName.split(":")[0]
        return Device(arch, properties.multi_processor_count, LEAST_SHARED_AMD, descriptors=False)
    arch = f"sm{properties.major}{properties.minor}"
    descriptors = properties.major >= 9 and TensorDescriptor is not None
    return Device(arch, properties.multi_processor_count, SHARED.get(arch, LEAST_SHARED), descriptors)


def guard(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the GPU of ``x`` the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def describable(x: Tensor) -> bool:
    """Whether the bulk copy engine can read ``x [rows, columns]`` of int8, whose columns are contiguous."""
    stride = row_stride(x)
    return x.data_ptr() % 16 == 0 and stride % 16 == 0 and stride >= x.shape[1]


def describe(x: Tensor, rows: int, columns: int) -> Any:
    """A descriptor of ``x`` that gives tiles of ``rows x columns``."""
    return TensorDescriptor(x, list(x.shape), [row_stride(x), 1], [rows, columns])


def row_stride(x: Tensor) -> int:
    """Elements between two rows; of a single row, its length, whatever stride it came with."""
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


def with_contiguous_rows(x: Tensor) -> Tensor:
    """``x [rows, columns]``, copied if its columns are not contiguous."""
    return x if x.stride(1) == 1 else x.contiguous()
