"""Compares each kernel with its eager reference before it is used for the first time.

A kernel that disagrees, or that does not compile or start, is disabled on that device until the process ends. One line
in the log names it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable

import torch

from .cases import Case, find_fault
from .errors import KernelError

SELFTEST = "python -m calibrated_rounding.kernels.selftest"

logger = logging.getLogger(__name__)
_lock = threading.Lock()
_usable: dict[tuple[str, torch.device, Hashable], bool] = {}
_faults: dict[tuple[str, torch.device], str] = {}
_captured: set[tuple[str, torch.device]] = set()


def is_usable(
    kernel: str,
    device: torch.device,
    backend: str,
    variant: Hashable,
    list_cases: Callable[[], Iterable[Case]],
) -> bool:
    """Return whether a kernel may run; at first use of a variant it is checked.

    While a CUDA graph is captured nothing is checked, and a kernel that was not checked before is not used.

    Args:
        kernel: Its name in the log. If one variant is wrong, all variants of the name are disabled.
        device: Where it runs.
        backend: One of `backend.NAMES`.
        variant: Distinguishes what is compiled separately.
        list_cases: Makes the problems to check it on.

    Raises:
        KernelError: The kernel is wrong, and Triton was asked for by name.
    """
    usable = _usable.get((kernel, device, variant))
    if usable is None:
        usable = not _is_deferred(kernel, device) and _check(kernel, device, variant, list_cases)
    if not usable and backend != "auto" and (kernel, device) in _faults:
        fault = _faults[kernel, device]
        raise KernelError(
            f"Kernel backend {backend!r} cannot run: {kernel} is wrong on {device} ({fault}); choose auto or eager."
        )
    return usable


def forget() -> None:
    """Forget all results, so that every kernel is checked again."""
    with _lock:
        _usable.clear()
        _faults.clear()
        _captured.clear()


def _is_deferred(kernel: str, device: torch.device) -> bool:
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return False
    if (kernel, device) not in _captured:
        _captured.add((kernel, device))
        logger.warning(
            "The kernel %s is not used in a CUDA graph on %s, because it was not checked before the capture; run the "
            "model once before capturing.",
            kernel,
            device,
        )
    return True


def _check(kernel: str, device: torch.device, variant: Hashable, list_cases: Callable[[], Iterable[Case]]) -> bool:
    with _lock:
        key = (kernel, device, variant)
        if key not in _usable:
            if (kernel, device) not in _faults:
                _look_for_fault(kernel, device, list_cases)
            _usable[key] = (kernel, device) not in _faults
        return _usable[key]


def _look_for_fault(kernel: str, device: torch.device, list_cases: Callable[[], Iterable[Case]]) -> None:
    fault = next((fault for case in list_cases() if (fault := find_fault(case, device)) is not None), None)
    if fault is not None:
        _faults[kernel, device] = fault
        for known in [key for key in _usable if key[:2] == (kernel, device)]:
            _usable[known] = False
        logger.warning(
            "The Triton kernel %s is wrong on %s and not used (%s); PyTorch computes instead. `%s` prints what a bug "
            "report needs.",
            kernel,
            device,
            fault,
            SELFTEST,
        )
