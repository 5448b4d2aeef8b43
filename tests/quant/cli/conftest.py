"""Running the command line within the process, and small models for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.calibration.collector import Collector
from calibrated_rounding.quant.calibration.statistics import fingerprint
from calibrated_rounding.quant.cli import main
from safetensors.torch import load_file, save_file


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


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine gives the same bytes."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


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


@pytest.fixture
def calibration_path(tiny_path: Path) -> Path:
    """A calibration of that model, in a folder of its own: correlated inputs of both layers."""
    collector, generator = Collector(rows=512), torch.Generator().manual_seed(2)
    weights = {layer: load_file(tiny_path)[f"{layer}.weight"] for layer in ("a", "b")}
    for layer, weight in weights.items():
        width = weight.shape[1]
        mixing = torch.randn(width, width, generator=generator) * torch.arange(1, width + 1) ** -0.7
        collector.add(layer, torch.randn(512, width, generator=generator) @ mixing.T)
    path = tiny_path.parent / "recorded" / "c.safetensors"
    path.parent.mkdir()
    collector.finish({layer: fingerprint(weight) for layer, weight in weights.items()}).save(path)
    return path
