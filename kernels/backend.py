"""Which implementation runs: the eager reference, or the Triton kernels with fixed or with persistent tiles.

"auto" is eager on the CPU, without Triton and on GPUs without int8 tensor cores, and says in the log why where a GPU
was there; elsewhere it is the tuned table's winner for the shape, or "triton" where no table knows the shape. CPU
tensors are always eager, whatever is chosen, unless Triton's interpreter is on (``TRITON_INTERPRET=1``) and a Triton
backend is chosen.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from .errors import KernelError

NAMES = ("auto", "triton", "triton_v2", "eager")
VARIABLE = "CALIBRATED_ROUNDING_KERNELS"

logger = logging.getLogger(__name__)
_current = os.environ.get(VARIABLE, "auto")


def get_kernel_backend() -> str:
    """The name that was chosen last, at first that of the environment variable `VARIABLE`, or "auto"."""
    return _current


def set_kernel_backend(name: str) -> None:
    """Choose one of `NAMES` for the whole process. Raises KernelError for any other name."""
    global _current
    _current = checked(name)


@contextmanager
def kernel_backend(name: str) -> Iterator[None]:
    """Choose one of `NAMES` for a with-block. Raises KernelError for any other name."""
    before = _current
    set_kernel_backend(name)
    try:
        yield
    finally:
        set_kernel_backend(before)


def checked(name: str) -> str:
    if name not in NAMES:
        raise KernelError(
            f"Kernel backend {name!r} (of {VARIABLE} or set_kernel_backend) is unknown; choose {', '.join(NAMES)}."
        )
    return name


def runs_triton(name: str, x: Tensor) -> bool:
    """Whether backend ``name`` runs Triton kernels on ``x``.

    Raises KernelError if ``name`` is unknown, or asks for Triton on a GPU where it does not work.
    """
    if checked(name) == "eager":
        return False
    if not x.is_cuda:
        return x.device.type == "cpu" and name != "auto" and interpreting()
    obstacle = why_no_triton(x.device)
    if obstacle is not None and name != "auto":
        raise KernelError(f"Kernel backend {name!r} cannot run: {obstacle}; choose auto or eager.")
    return obstacle is None


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=32)
def why_no_triton(device: torch.device) -> str | None:
    """Why the Triton kernels do not work on a GPU, in words, or None where they do. Logged, once a device."""
    obstacle = _obstacle(device)
    if obstacle is not None:
        logger.warning("INT8 products and error feedback on %s run without Triton, slowly: %s.", device, obstacle)
    return obstacle


def _obstacle(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    try:
        from . import gpu

        x = torch.ones(16, 16, device=device)
        codes, scale = gpu.act_quant(x, None)
        gpu.gemm(codes, scale, codes, scale, None, None, x.dtype, "triton")
    except Exception as error:  # whatever a broken driver, compiler or Triton raises, the reason is reported
        return f"Triton failed a trial run ({type(error).__name__}: {_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
