"""Weights to test on: the shipped trained model's, and the shapes that go wrong; processes that can be interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal, here and in child processes: a shell starts its background jobs with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
