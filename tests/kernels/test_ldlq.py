from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calibrated_rounding.kernels import ldlq
from calibrated_rounding.kernels.backend import NAMES, kernel_backend
from calibrated_rounding.kernels.errors import KernelError
from calibrated_rounding.kernels.ldlq import ColumnBlock
from calibrated_rounding.quant.formats.grids import INT8

BLOCK = ColumnBlock(weight=torch.zeros(3, 5), scale=torch.ones(1, 1).expand(3, 5), grid=INT8)
TARGETS = torch.full((3, 5), 0.75)
EYE = torch.eye(3)


@pytest.mark.parametrize("backend", NAMES)
def test_columns_compensate_on_cpu_with_every_backend(backend: str) -> None:
    factor = torch.tensor([[1.0, 0.0, 2.0], [7.0, 1.0, -1.0], [7.0, 7.0, 1.0]])
    errors = torch.empty(3, 5)
    with kernel_backend(backend):
        ldlq.ldlq_block(BLOCK, factor, TARGETS, errors)
    # The last is 1; the second's target 0.75 + 1 = 1.75, the first's 0.75 - 2 = -1.25.
    assert errors.T.tolist() == [[-1.0, 2.0, 1.0]] * 5


def test_descent_ends_at_coordinate_minimum() -> None:
    hessian = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 4.0]])
    block = replace(BLOCK, weight=TARGETS)
    errors = 3 - TARGETS
    ldlq.descend_block(block, hessian, hessian @ errors, errors)
    # Minima, each given those before: 0.75 - 0.9 x 2.25 = -1.275, 0.75 - 0.9 x -1.75 = 2.325, and 0.75.
    assert (TARGETS + errors).T.tolist() == [[-1.0, 2.0, 1.0]] * 5


WRONG = {
    "too many columns": (replace(BLOCK, weight=torch.zeros(129, 5)), EYE, TARGETS, "At most 128 columns"),
    "targets of another shape": (BLOCK, EYE, torch.zeros(3, 4), r"\[3, 5\].*\[3, 4\]"),
    "targets of another dtype": (BLOCK, EYE, TARGETS.double(), "float64"),
    "rows that are not contiguous": (BLOCK, EYE, torch.zeros(5, 3).T, "contiguous rows"),
    "limits of another shape": (replace(BLOCK, limits=(TARGETS, TARGETS[:2])), EYE, TARGETS, r"\[2, 5\]"),
    "a scale that is not expanded": (replace(BLOCK, scale=torch.ones(1, 1)), EYE, TARGETS, r"Scales .*\[1, 1\]"),
    "a matrix of another shape": (BLOCK, torch.eye(4), TARGETS, r"factor or Hessian .*\[3, 3\].*\[4, 4\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_operands_that_do_not_fit_are_refused(name: str) -> None:
    block, matrix, targets, message = WRONG[name]
    for run in (ldlq.ldlq_block, ldlq.descend_block):
        with pytest.raises(KernelError, match=message):
            run(block, matrix, targets, torch.zeros(3, 5))
