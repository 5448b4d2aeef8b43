"""Launches the kernel of `jit.feedback`; the functions and results of `eager.feedback`."""

from __future__ import annotations

from torch import Tensor

from ..eager.feedback import Inputs
from .device import guard
from .jit.feedback import walk

BLOCK = 128
"""Inputs that a program has room for."""

TILE = 32
"""Outputs of a program. Not measured: with four warps a thread keeps 32 errors in registers, and none spills."""

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
"""Products are rounded before they are added, as in the reference: errors are the same bits where their codes are."""


def feed_back(inputs: Inputs, targets: Tensor, errors: Tensor) -> None:
    _walk(inputs, targets, errors, descend=False)


def descend(inputs: Inputs, gradient: Tensor, errors: Tensor) -> None:
    _walk(inputs, gradient, errors, descend=True)


def _walk(inputs: Inputs, start: Tensor, errors: Tensor, *, descend: bool) -> None:
    """``errors`` and what is not expanded have contiguous outputs: see `checks.inputs`."""
    (count, outputs), grid = errors.shape, inputs.grid
    low, high = inputs.limits or (inputs.weight, inputs.weight)
    with guard(errors):
        walk[(-(-outputs // TILE),)](
            start, inputs.weight, inputs.scale, low, high, inputs.within, errors, count, outputs,
            start.stride(0), inputs.weight.stride(0), *inputs.scale.stride(), low.stride(0), high.stride(0),
            *inputs.within.stride(), errors.stride(0),
            BLOCK=BLOCK, TILE=TILE, DESCEND=descend, LIMITED=inputs.limits is not None, MAXIMUM=grid.maximum,
            MANTISSA_BITS=grid.mantissa_bits, SMALLEST_EXPONENT=grid.smallest_exponent, **OPTIONS,
        )  # fmt: skip
