"""Facts about a tensor's device and Triton's version that launching a kernel depends on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..tiles import DeviceInfo

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton before 3.4 cannot make descriptors on the CPU's side
    TensorDescriptor = None

OPTIONS = {"enable_fp_fusion": False}
"""Of every launch. Products are rounded before they are added, as in the reference, whatever Triton does by default;
where a kernel fuses, it says so."""

SHARED = {"sm80": 166_912, "sm87": 166_912, "sm90": 232_448, "sm100": 232_448, "sm103": 232_448}
"""Bytes of shared memory that one program may have (CUDA C++ Programming Guide, technical specifications)."""

LEAST_SHARED, LEAST_SHARED_AMD = 101_376, 65_536
"""The same for every other GPU since compute capability 8.0, and for AMD."""

SLOW_CONVERSIONS = ("sm80",)
"""Architectures that convert integers to floats at a quarter of the rate of additions (CUDA C++ Programming Guide,
throughput of arithmetic instructions). All others that have INT8 products convert as fast as they add."""

INTERPRETED = DeviceInfo(arch="interpreter", processors=3, shared=232_448, descriptors=TensorDescriptor is not None)
"""The device of Triton's interpreter: few processors, so that each computes several tiles."""


@lru_cache(maxsize=32)
def get_device_info(device: torch.device) -> DeviceInfo:
    """Return the facts about a GPU; for the CPU, `INTERPRETED`."""
    if device.type == "cpu":
        return INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        arch = properties.gcnArchName.split(":")[0]
        shared, descriptors = LEAST_SHARED_AMD, False
    else:
        arch = f"sm{properties.major}{properties.minor}"
        shared = SHARED.get(arch, LEAST_SHARED)
        descriptors = properties.major >= 9 and TensorDescriptor is not None
    processors = properties.multi_processor_count
    return DeviceInfo(arch=arch, processors=processors, shared=shared, descriptors=descriptors)


def use_device(x: Tensor) -> AbstractContextManager[Any]:
    """Make the GPU of ``x`` the current one for a with-block: Triton launches on the current GPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def supports_descriptor(x: Tensor) -> bool:
    """Return whether the bulk copy engine can read int8 ``x [rows, columns]`` with contiguous rows."""
    stride = row_stride(x)
    return x.data_ptr() % 16 == 0 and stride % 16 == 0 and stride >= x.shape[1]


def make_descriptor(x: Tensor, rows: int, columns: int) -> Any:
    """Make a descriptor that loads tiles of ``rows x columns`` from ``x``."""
    return TensorDescriptor(x, list(x.shape), [row_stride(x), 1], [rows, columns])


def row_stride(x: Tensor) -> int:
    """Return the elements from one row to the next; the length of the row if there is only one."""
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


def make_rows_contiguous(x: Tensor) -> Tensor:
    """Return ``x [rows, columns]``, copied if its rows are not contiguous."""
    return x if x.stride(1) == 1 else x.contiguous()
