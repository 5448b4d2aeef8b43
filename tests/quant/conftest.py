"""Weights to test on: the shipped trained model's, and the shapes that go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

MODELS = Path(__file__).parents[2] / "examples" / "models"


@pytest.fixture(scope="session")
def digits_path() -> Path:
    return next(MODELS.rglob("digits_wan.safetensors"))


@pytest.fixture(scope="session")
def digits(digits_path: Path) -> dict[str, torch.Tensor]:
    """The trained model's state dict."""
    return load_file(digits_path)


@pytest.fixture(scope="session")
def trained(digits: dict[str, torch.Tensor]) -> torch.Tensor:
    """One trained weight, float32 [512, 256]."""
    return digits["blocks.1.ffn.0.weight"].float()
