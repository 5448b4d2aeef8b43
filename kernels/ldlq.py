"""LDLQ and coordinate descent within a block of columns, as `quant` calls them for each block: one kernel on a GPU.

The Triton kernel computes in float32, without TF32 and without fusing products with sums. It differs from the eager
reference only in the order of one sum: the feedback to a column from the ``n <= 127`` others of its block. The sum is
within ``2 n 2^-24 sum_j |factor[i, j] errors[j]|`` of the reference, so a code is the same unless its target lies that
close to a tie. Columns that follow one with another code are rounded for that code.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from . import cases
from .backend import LDLQ, get_kernel_backend, runs_triton
from .checks import check_columns
from .eager import ldlq as eager
from .eager.ldlq import ColumnBlock, Grid
from .first_use import is_usable

__all__ = ["ColumnBlock", "Grid", "descend_block", "ldlq_block"]


def ldlq_block(block: ColumnBlock, factor: Tensor, targets: Tensor, errors: Tensor) -> None:
    """Round a block's columns from the last to the first; each makes up for the errors of those rounded before it.

    Column ``i`` is rounded from ``targets[i] - sum_{j > i} factor[i, j] errors[j]`` (LDLQ: Chee et al., arXiv
    2307.13304, section 3).

    Args:
        block: B <= 128 columns of a weight with N rows.
        factor: Block of ``L^T`` on the diagonal, float32 ``[B, B]``; only entries above its own diagonal are read.
        targets: Weights less the feedback from other blocks, float32 ``[B, N]``; only read.
        errors: Receives the rounded minus the float weights, float32 ``[B, N]``.

    Raises:
        KernelError: Operands do not fit each other, or the selected backend cannot run.
    """
    check_columns(block, factor, targets, errors)
    _select_implementation(block, errors).ldlq_block(block, factor, targets, errors)


def descend_block(block: ColumnBlock, hessian: Tensor, gradient: Tensor, errors: Tensor) -> None:
    """Move each column, from the first on, to the grid point of least cost while all others stay.

    Args:
        block: B <= 128 columns of a weight with N rows.
        hessian: Block of the Hessian on the diagonal, float32 ``[B, B]``.
        gradient: Half the gradient of the cost with respect to the errors, float32 ``[B, N]``; overwritten.
        errors: Rounded minus float weights, float32 ``[B, N]``; updated in place.

    Raises:
        KernelError: Operands do not fit each other, or the selected backend cannot run.
    """
    check_columns(block, hessian, gradient, errors)
    _select_implementation(block, errors).descend_block(block, hessian, gradient, errors)


def _select_implementation(block: ColumnBlock, errors: Tensor) -> ModuleType:
    backend, grid, device = get_kernel_backend(), block.grid, errors.device
    if errors.numel() and runs_triton(backend, errors, LDLQ):
        variant = grid.maximum, grid.mantissa_bits
        if is_usable("ldlq", device, backend, variant, lambda: cases.ldlq(grid, device)):
            from .gpu import ldlq

            return ldlq
    return eager
