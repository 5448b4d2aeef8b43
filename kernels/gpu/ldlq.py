"""Launches the kernel of `jit.ldlq`; same functions and results as `eager.ldlq`."""

from __future__ import annotations

from torch import Tensor

from ..eager.ldlq import ColumnBlock
from .device import OPTIONS, use_device
from .jit.ldlq import round_columns

BLOCK = 128
"""Columns that a program has room for."""

TILE = 32
"""Rows of a program. Not measured: with four warps a thread keeps 32 errors in registers, and none spills."""

WARPS = 4


def ldlq_block(block: ColumnBlock, factor: Tensor, targets: Tensor, errors: Tensor) -> None:
    """See `eager.ldlq.ldlq_block`."""
    _launch(block, factor, targets, errors, descend=False)


def descend_block(block: ColumnBlock, hessian: Tensor, gradient: Tensor, errors: Tensor) -> None:
    """See `eager.ldlq.descend_block`; ``gradient`` is not overwritten here."""
    _launch(block, hessian, gradient, errors, descend=True)


def _launch(block: ColumnBlock, matrix: Tensor, start: Tensor, errors: Tensor, *, descend: bool) -> None:
    """Run the kernel. Rows of all operands are contiguous or expanded, as `checks.check_columns` requires."""
    (count, rows), grid = errors.shape, block.grid
    low, high = block.limits or (block.weight, block.weight)
    with use_device(errors):
        round_columns[(-(-rows // TILE),)](
            start, block.weight, block.scale, low, high, matrix, errors, count, rows,
            start.stride(0), block.weight.stride(0), *block.scale.stride(), low.stride(0), high.stride(0),
            *matrix.stride(), errors.stride(0),
            BLOCK=BLOCK, TILE=TILE, DESCEND=descend, LIMITED=block.limits is not None, MAXIMUM=grid.maximum,
            MANTISSA_BITS=grid.mantissa_bits, SMALLEST_EXPONENT=grid.smallest_exponent, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip
