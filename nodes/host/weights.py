"""The weights of a loaded model as a source of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from ...quant.files.tensors import Spec

if TYPE_CHECKING:
    from torch import Tensor

Merge = Callable[[torch.Tensor], torch.Tensor]
"""Makes a patched weight from the model's own, which it leaves unchanged."""

SAMPLE = 1024
"""Values of each tensor that a quick digest takes."""


class LoadedWeights:
    """A `Source` over the tensors of a loaded model, on whatever device each is."""

    path = None

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        file_dtypes: Mapping[str, torch.dtype] | None = None,
        merges: Mapping[str, Merge] | None = None,
    ) -> None:
        """Take a model's tensors.

        Args:
            tensors: The model's own tensors, by name.
            file_dtypes: Dtypes of the tensors in the file that the model comes from, which plans and files keep.
            merges: For each tensor with patches to be merged into it, what merges them.
        """
        self._data, self._merges = tensors, merges or {}
        dtypes = file_dtypes or {}
        self.tensors = {n: Spec(prefer_dtype(t.dtype, dtypes.get(n)), tuple(t.shape)) for n, t in tensors.items()}
        self.metadata: dict[str, str] = {}

    def read(self, name: str) -> Tensor:
        """A copy on the CPU, merged. A model's own weights are inference tensors, which no optimizer can use."""
        tensor = self._data[name].detach()
        if name in self._merges:
            tensor = self._merges[name](tensor)
        with torch.inference_mode(False):
            return tensor.to("cpu", self.tensors[name].dtype, copy=True)

    def sha256(self) -> None:
        return None

    def digest(self, *, quick: bool, check_cancelled: Callable[[], None] = lambda: None) -> str:
        """SHA-256 over names, dtypes, shapes and values.

        Args:
            quick: Take the first `SAMPLE` values only, of tensors without patches.
            check_cancelled: Called before each tensor; may raise to stop.
        """
        digest = hashlib.sha256()
        for name, tensor in self._data.items():
            check_cancelled()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            merged = name in self._merges
            values = (self.read(name) if merged else tensor.detach()).reshape(-1)
            values = (values[:SAMPLE] if quick and not merged else values).to("cpu").contiguous()
            digest.update(values.view(torch.uint8).numpy().data)
        return digest.hexdigest()


def prefer_dtype(loaded: torch.dtype, preferred: torch.dtype | None) -> torch.dtype:
    """``preferred``, if both are floating point of at least 16 bits: codes, scales and indices keep their own."""
    if preferred is None or not all(d.is_floating_point and d.itemsize > 1 for d in (loaded, preferred)):
        return loaded
    return preferred
