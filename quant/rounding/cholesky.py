"""A Cholesky factorization in blocks of a fixed size, so that it has the same bits on any number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..parallel import BLOCK, blocks, run_all

FIRST_DAMPING = 1e-6
DAMPINGS = 7
"""Damping tried first on a matrix that has no Cholesky factor, relative to its mean diagonal, and how many times it is
tried, ten times larger each time."""


def factorize(hessian: Tensor) -> Tensor:
    """Return the lower Cholesky factor ``[K, K]``; damps the matrix in place as long as it has none.

    What lies above the factor's diagonal is undefined.

    Raises:
        torch.linalg.LinAlgError: The matrix holds NaN, or damping does not help.
    """
    damping = FIRST_DAMPING * float(hessian.diagonal().mean())
    for _ in range(DAMPINGS):
        factor = _try_factorize(hessian)
        if factor is not None:
            return factor
        hessian.diagonal().add_(damping)
        damping *= 10
    last: Tensor = torch.linalg.cholesky(hessian)
    return last


def _try_factorize(hessian: Tensor) -> Tensor | None:
    """The factor, None if there is none."""
    if hessian.device.type != "cpu":
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(hessian)
        return None if failed else factor
    factor = hessian.clone()
    for columns in blocks(len(factor), BLOCK):
        corner, failed = torch.linalg.cholesky_ex(factor[columns, columns])
        if failed:
            return None
        factor[columns, columns] = corner
        _eliminate(factor, columns, corner)
    return factor


def _eliminate(factor: Tensor, columns: slice, corner: Tensor) -> None:
    """Finish a block of columns below its corner, and subtract its products from all columns behind it."""

    def solve(rows: slice) -> None:
        panel[rows] = torch.linalg.solve_triangular(corner.T, panel[rows], upper=True, left=False)

    def subtract(rows: slice) -> None:
        rest[rows, : rows.stop].addmm_(panel[rows], panel[: rows.stop].T, alpha=-1)

    panel, rest = factor[columns.stop :, columns], factor[columns.stop :, columns.stop :]
    run_all(solve, blocks(len(panel), BLOCK))
    # The last block of rows has the most products.
    run_all(subtract, blocks(len(panel), BLOCK)[::-1])
