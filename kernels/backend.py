"""Selects the implementation: the eager reference, or the Triton kernels with fixed or with persistent tiles.

"auto" is eager on the CPU, without Triton, and on GPUs without int8 tensor cores; on a GPU the log then says why.
Elsewhere it is the backend that the tuned table names for the shape, or "triton" if no table knows the shape. CPU
tensors are always eager, unless Triton's interpreter is on (``TRITON_INTERPRET=1``) and a Triton backend is selected.
"reference" is eager too, and multiplies in INT8 where "eager" multiplies dequantized weights, which is faster.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .cases import describe_error
from .errors import KernelError

NAMES = ("auto", "triton", "triton_v2", "eager", "reference")
EAGER = ("eager", "reference")
VARIABLE = "CALIBRATED_ROUNDING_KERNELS"


@dataclass(frozen=True)
class Work:
    """What kernels do, and what they need."""

    title: str

    capability: tuple[int, int]
    """The least compute capability of NVIDIA's GPUs."""


PRODUCTS = Work("INT8 products", (8, 0))
"""All kernels of `ops`. Triton has no INT8 product for GPUs older than that."""
LDLQ = Work("LDLQ steps", (7, 5))
"""The kernels of `ldlq` and `groups`, which compute in float32."""

logger = logging.getLogger(__name__)
_current = os.environ.get(VARIABLE, "auto")


def get_kernel_backend() -> str:
    """Return the name that was selected last: at first from the environment variable `VARIABLE`, else "auto"."""
    return _current


def set_kernel_backend(name: str) -> None:
    """Select a backend for the whole process.

    Args:
        name: One of `NAMES`.

    Raises:
        KernelError: The name is unknown.
    """
    global _current
    _check_name(name)
    _current = name


@contextmanager
def kernel_backend(name: str) -> Iterator[None]:
    """Select a backend for a with-block.

    Args:
        name: One of `NAMES`.

    Raises:
        KernelError: The name is unknown.
    """
    before = _current
    set_kernel_backend(name)
    try:
        yield
    finally:
        set_kernel_backend(before)


def runs_triton(name: str, x: Tensor, work: Work = PRODUCTS) -> bool:
    """Return whether a backend runs Triton kernels on a tensor.

    Args:
        name: One of `NAMES`.
        x: Any operand; only its device matters.
        work: What the kernels do.

    Raises:
        KernelError: The name is unknown, or it asks for Triton on a GPU where Triton does not work.
    """
    _check_name(name)
    if name in EAGER:
        return False
    if not x.is_cuda:
        return x.device.type == "cpu" and name != "auto" and is_interpreted()
    obstacle = find_obstacle(x.device, work)
    if obstacle is not None and name != "auto":
        raise KernelError(f"Kernel backend {name!r} cannot run: {obstacle}; choose auto or eager.")
    return obstacle is None


def is_interpreted() -> bool:
    """Return whether Triton kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=32)
def find_obstacle(device: torch.device, work: Work = PRODUCTS) -> str | None:
    """Return why the Triton kernels do not work on a GPU, or None if they do. Logged once per device and work."""
    obstacle = _find_obstacle(device, work)
    if obstacle is not None:
        logger.warning("%s on %s run without Triton, in PyTorch: %s.", work.title, device, obstacle)
    return obstacle


def _find_obstacle(device: torch.device, work: Work) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    # Without a driver Triton is never imported: some versions, and packages on top of them, raise at import.
    if not torch.cuda.is_available():
        return "there is no GPU driver"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < work.capability:
        return "the GPU is older than compute capability " + ".".join(map(str, work.capability))
    try:
        from . import gpu

        x = torch.ones(16, 16, device=device)
        gpu.act_quant(x, None)
    except Exception as error:  # whatever a broken driver, compiler or Triton raises, the reason is reported
        return f"Triton failed a trial run ({describe_error(error)})"
    return None


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise KernelError(
            f"Kernel backend {name!r} (of {VARIABLE} or set_kernel_backend) is unknown; choose {', '.join(NAMES)}."
        )
