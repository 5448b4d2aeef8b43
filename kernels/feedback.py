"""Error feedback within a block of inputs, as `quant` calls it for each block of a layer: one kernel on a GPU.

The Triton kernel computes in float32, without TF32 and without fusing products with sums, and differs from the eager
reference in nothing but the order of one sum: of the errors passed on to an input from the ``n <= 127`` others. It is
within ``2 n 2^-24 sum_j |within[i, j] errors[j]|`` of the reference's, and the code is the same unless the target lies
that near to a tie (and a rounding of each operation that it then goes through). Inputs that come after one with another
code are rounded for that code.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from . import checks
from .backend import get_kernel_backend, runs_triton
from .eager import feedback as eager
from .eager.feedback import Grid, Inputs

__all__ = ["Grid", "Inputs", "descend", "feed_back"]


def feed_back(inputs: Inputs, targets: Tensor, errors: Tensor) -> None:
    """Round B <= 128 inputs from the last to the first and write their ``errors [B, N]``: see `eager.feedback`.

    Raises KernelError where operands do not fit each other.
    """
    checks.inputs(inputs, targets, errors)
    _implementation(errors).feed_back(inputs, targets, errors)


def descend(inputs: Inputs, gradient: Tensor, errors: Tensor) -> None:
    """Round B <= 128 inputs anew, from the first to the last, and change their ``errors [B, N]``: see `eager.feedback`.

    Raises KernelError where operands do not fit each other.
    """
    checks.inputs(inputs, gradient, errors)
    _implementation(errors).descend(inputs, gradient, errors)


def _implementation(errors: Tensor) -> ModuleType:
    if errors.numel() and runs_triton(get_kernel_backend(), errors):
        from .gpu import feedback

        return feedback
    return eager
