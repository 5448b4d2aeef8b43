"""Files made byte by byte, and what every error of this package has in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant.errors import CheckpointError
from calibrated_rounding.quant.files import CheckpointWriter

Refusal = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def raw_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a file from a header (bytes, or anything JSON can express) and the data that follows it."""

    def write(header: Any, data: bytes = b"", name: str = "model.safetensors") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        return path

    return write


@pytest.fixture
def refused() -> Refusal:
    """Expect a CheckpointError of one sentence that holds all of the given texts."""

    @contextmanager
    def expect(*texts: object) -> Iterator[None]:
        with pytest.raises(CheckpointError) as caught:
            yield
        message = str(caught.value)
        assert message.endswith(".")
        assert "\n" not in message
        assert len(message) < 600
        for text in texts:
            assert str(text) in message

    return expect


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Three tensors whose sizes are odd and whose order is not the one in the file."""
    return {
        "bytes": torch.arange(7, dtype=torch.uint8),
        "matrix": torch.linspace(-3, 3, 15).reshape(3, 5),
        "halves": torch.linspace(0, 1, 9).to(torch.bfloat16),
    }


@pytest.fixture(scope="module")
def save() -> Callable[..., Path]:
    """Write tensors with the writer under test."""

    def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
        layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        with CheckpointWriter(path, layout, metadata or {}) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
            writer.commit()
        return path

    return write
