"""Running the command line within the process, and small models for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.cli import main
from safetensors.torch import save_file


@dataclass(frozen=True)
class Ran:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what was wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture
def tiny_path(tmp_path: Path) -> Path:
    """A float model of two layers and a norm, which no profile knows."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "a.weight": torch.randn(32, 64, generator=generator),
        "a.bias": torch.randn(32, generator=generator),
        "b.weight": torch.randn(16, 32, generator=generator),
        "norm.weight": torch.ones(16),
    }
    path = tmp_path / "tiny.safetensors"
    save_file(tensors, path, metadata={"origin": "a test"})
    return path
