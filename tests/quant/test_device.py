from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant import RecipeError
from calibrated_rounding.quant.device import choose_device


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A PyTorch that has this accelerator."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(request.param))


def test_auto_is_the_cpu_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"


@pytest.mark.parametrize("accelerator", ["meta"], indirect=True)
def test_auto_is_an_accelerator_that_computes_in_float64(accelerator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.0)  # "meta" has no values, but takes float64
    assert choose_device("auto") == "meta"


@pytest.mark.parametrize("accelerator", ["mps", "xpu"], indirect=True)
def test_auto_falls_back_to_cpu(accelerator: None) -> None:
    assert choose_device("auto") == "cpu"


def test_a_named_device_is_used_or_refused() -> None:
    assert choose_device("cpu") == "cpu"
    for name in ("nowhere", "xpu", "cpu:x", ""):
        with pytest.raises(RecipeError, match=f"The device '{name}' cannot be used: "):
            choose_device(name)
