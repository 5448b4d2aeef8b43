from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calibrated_rounding.kernels import selftest

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "SHAPES", ((17, 129, 136),))
    monkeypatch.setattr(selftest, "race", lambda calls, rounds, device: {"kernel": 1.0})


def test_kernels_agree_with_their_references() -> None:
    outcomes = [selftest.check(case, CPU) for case in selftest.list_cases(CPU)]
    assert [outcome for outcome in outcomes if outcome.problem is not None] == []
    assert len(outcomes) == 19 and all(outcome.ms is not None for outcome in outcomes)


def test_wrong_and_failing_kernels_are_named() -> None:
    case = next(iter(selftest.list_cases(CPU)))
    codes, scale = case.reference()

    def fail() -> None:
        raise RuntimeError("no driver\nmore")

    wrong = selftest.check(replace(case, run=lambda: (codes, scale * 1.01)), CPU)
    assert "act_quant, block None" in selftest.describe(wrong) and "WRONG: differs by" in selftest.describe(wrong)
    assert selftest.check(replace(case, run=fail), CPU).problem == "RuntimeError: no driver"
