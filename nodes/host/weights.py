"""The weights of a loaded model as a source of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import torch

from ...quant.files.tensors import Spec

if TYPE_CHECKING:
    from torch import Tensor


class Merge(Protocol):
    """Patches to merge into a weight."""

    def merge(self, weight: Tensor) -> Tensor:
        """Make the patched weight from the model's own, which stays unchanged."""

    def digest(self) -> str | None:
        """SHA-256 of everything that `merge` depends on but for the weight; None: unknown."""


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
            merges: For each tensor with patches to be merged into it, these patches.
        """
        self._data, self._merges = tensors, merges or {}
        dtypes = file_dtypes or {}
        self.tensors = {n: Spec(prefer_dtype(t.dtype, dtypes.get(n)), tuple(t.shape)) for n, t in tensors.items()}
        self.metadata: dict[str, str] = {}

    def read(self, name: str) -> Tensor:
        """A copy on the CPU, merged. A model's own weights are inference tensors, which no optimizer can use."""
        tensor = self._data[name].detach()
        if name in self._merges:
            tensor = self._merges[name].merge(tensor)
        with torch.inference_mode(False):
            return tensor.to("cpu", self.tensors[name].dtype, copy=True)

    def sha256(self) -> None:
        return None

    def digest(self, *, quick: bool, check_cancelled: Callable[[], None] = lambda: None) -> str:
        """SHA-256 over names, dtypes, shapes and values, and over patches. Merging is left to `read`, where it can be.

        Args:
            quick: Take the first `SAMPLE` values of the model's own tensors only.
            check_cancelled: Called before each tensor; may raise to stop.
        """
        digest = hashlib.sha256()
        for name, tensor in self._data.items():
            check_cancelled()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            patches = self._merges[name].digest() if name in self._merges else ""
            whole = patches is None
            digest.update((patches or "").encode())
            values = (self.read(name) if whole else tensor.detach()).reshape(-1)
            values = (values[:SAMPLE] if quick and not whole else values).to("cpu").contiguous()
            digest.update(values.view(torch.uint8).numpy().data)
        return digest.hexdigest()


def prefer_dtype(loaded: torch.dtype, preferred: torch.dtype | None) -> torch.dtype:
    """``preferred``, if both are floating point of at least 16 bits: codes, scales and indices keep their own."""
    if preferred is None or not all(d.is_floating_point and d.itemsize > 1 for d in (loaded, preferred)):
        return loaded
    return preferred
