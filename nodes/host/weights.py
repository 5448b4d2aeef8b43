"""The weights of a loaded model as a source of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from ...quant.files.tensors import Spec

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 1024
"""Values of each tensor that a quick digest takes."""


class LoadedWeights:
    """A `Source` over the tensors of a loaded model, on whatever device each is."""

    path = None

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._data = tensors
        self.tensors = {name: Spec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        self.metadata: dict[str, str] = {}

    def read(self, name: str) -> Tensor:
        """A copy on the CPU. A model's own weights are inference tensors, which no optimizer can use."""
        with torch.inference_mode(False):
            return self._data[name].detach().to("cpu", copy=True)

    def sha256(self) -> None:
        return None

    def digest(self, *, quick: bool, check_cancelled: Callable[[], None] = lambda: None) -> str:
        """SHA-256 over names, dtypes, shapes and values.

        Args:
            quick: Take the first `SAMPLE` values of each tensor only.
            check_cancelled: Called before each tensor; may raise to stop.
        """
        digest = hashlib.sha256()
        for name, tensor in self._data.items():
            check_cancelled()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            values = tensor.detach().reshape(-1)
            values = (values[:SAMPLE] if quick else values).to("cpu").contiguous()
            digest.update(values.view(torch.uint8).numpy().data)
        return digest.hexdigest()
