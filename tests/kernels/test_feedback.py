from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calibrated_rounding.kernels import feedback
from calibrated_rounding.kernels.backend import NAMES, kernel_backend
from calibrated_rounding.kernels.errors import KernelError
from calibrated_rounding.kernels.feedback import Inputs
from calibrated_rounding.quant.formats.grids import INT8

BLOCK = Inputs(torch.zeros(3, 5), torch.ones(1, 1).expand(3, 5), torch.eye(3), INT8)
TARGETS = torch.full((3, 5), 0.75)


@pytest.mark.parametrize("backend", NAMES)
def test_an_input_makes_up_for_those_after_it_on_the_cpu_whatever_is_chosen(backend: str) -> None:
    within = torch.tensor([[1.0, 0.0, 2.0], [7.0, 1.0, -1.0], [7.0, 7.0, 1.0]])
    errors = torch.empty(3, 5)
    with kernel_backend(backend):
        feedback.feed_back(replace(BLOCK, within=within), TARGETS, errors)
    # The last is 1; the second's target 0.75 + 1 = 1.75, the first's 0.75 - 2 = -1.25.
    assert errors.T.tolist() == [[-1.0, 2.0, 1.0]] * 5


def test_descent_ends_where_no_single_change_helps() -> None:
    metric = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 4.0]])
    block = replace(BLOCK, weight=TARGETS, within=metric)
    errors = 3 - TARGETS
    feedback.descend(block, metric @ errors, errors)
    # Minima, each given those before: 0.75 - 0.9 x 2.25 = -1.275, 0.75 - 0.9 x -1.75 = 2.325, and 0.75.
    assert (TARGETS + errors).T.tolist() == [[-1.0, 2.0, 1.0]] * 5


WRONG = {
    "too many inputs": (replace(BLOCK, weight=torch.zeros(129, 5)), TARGETS, "At most 128 inputs"),
    "targets of another shape": (BLOCK, torch.zeros(3, 4), r"\[3, 5\].*\[3, 4\]"),
    "targets of another dtype": (BLOCK, TARGETS.double(), "float64"),
    "rows that are not contiguous": (BLOCK, torch.zeros(5, 3).T, "contiguous rows"),
    "limits of another shape": (replace(BLOCK, limits=(TARGETS, TARGETS[:2])), TARGETS, r"\[2, 5\]"),
    "a scale that is not expanded": (replace(BLOCK, scale=torch.ones(1, 1)), TARGETS, r"Scales .*\[1, 1\]"),
    "within of another shape": (replace(BLOCK, within=torch.eye(4)), TARGETS, r"\[3, 3\].*\[4, 4\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_operands_that_do_not_fit_are_refused(name: str) -> None:
    block, targets, sentence = WRONG[name]
    for walk in (feedback.feed_back, feedback.descend):
        with pytest.raises(KernelError, match=sentence):
            walk(block, targets, torch.zeros(3, 5))
