"""The device that layers are quantized on."""

from __future__ import annotations

import torch

from .errors import RecipeError

AUTO_DEVICE = "auto"

OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of PyTorch's messages where exhausted memory is only a RuntimeError."""


def choose_device(name: str) -> str:
    """Find the device for a name.

    ``auto`` is the accelerator of this PyTorch (CUDA, ROCm, XPU, ...) if there is one and it computes in float64, which
    sums of squares need (Apple's MPS does not); otherwise the CPU.

    Args:
        name: ``auto``, or a device of PyTorch such as ``cpu`` or ``cuda:1``.

    Raises:
        RecipeError: if the named device cannot be used.
    """
    if name == AUTO_DEVICE:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator.type if accelerator is not None and not _find_obstacle(accelerator.type) else "cpu"
    obstacle = _find_obstacle(name)
    if obstacle:
        raise RecipeError(f"The device '{name}' cannot be used: {obstacle}")
    return name


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device is exhausted."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in OUT_OF_MEMORY)


def _find_obstacle(name: str) -> str:
    """Why a device cannot be used; empty if it can."""
    try:
        torch.zeros((), dtype=torch.float64, device=name).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        return str(error).splitlines()[0]
    return ""
