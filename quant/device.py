"""The device that layers are quantized on."""

from __future__ import annotations

import torch

from .errors import RecipeError

AUTO_DEVICE = "auto"
ALL_DEVICES = "all"

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


def list_devices(text: str) -> tuple[str, ...]:
    """Find several devices.

    Args:
        text: names with commas; ``all``: every visible GPU; a number: the first GPUs, or the CPU that often if PyTorch
            has no GPU.

    Raises:
        RecipeError: if a device cannot be used, or there are fewer GPUs.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if text == ALL_DEVICES:
        if not gpus:
            raise RecipeError("PyTorch sees no GPU; name the devices, or how many processes the CPU shall have.")
        return tuple(gpus)
    if text.isdecimal() and int(text):
        if gpus and int(text) > len(gpus):
            raise RecipeError(f"{text} devices were asked for, and PyTorch sees {len(gpus)} GPUs.")
        return tuple(gpus[: int(text)] or ["cpu"] * int(text))
    return tuple(choose_device(name.strip()) for name in text.split(","))


def name_accelerator(device: str, number: int) -> str:
    """The device with an index, if it is an accelerator without one: of the process ``number`` of a machine."""
    found = torch.device(device)
    if found.type == "cpu" or found.index is not None:
        return device
    return f"{found.type}:{number % torch.accelerator.device_count()}"


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
