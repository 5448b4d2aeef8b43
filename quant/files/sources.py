"""Sources of tensors: an open checkpoint or a state dict, and either with its quantized layers turned back to
float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from .tensors import Spec, TensorSpec


class Source(Protocol):
    """tensors: every tensor's dtype and shape, in the order in which reading is cheap."""

    @property
    def path(self) -> Path | None:
        """Of the file; None where the source is none."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorSpec]: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    def read(self, name: str) -> Tensor: ...
    def sha256(self) -> str | None:
        """Of the file, hexadecimal; None where the source is no file. Cheap only after everything was read."""
        ...


Verify = Callable[[Source], None]
"""Raises QuantError if a source is not what it should be."""


class StateDictSource:
    """A state dict as a source."""

    path = None

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        self._data = tensors
        self.tensors = {name: Spec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        self.metadata = dict(metadata or {})

    def read(self, name: str) -> Tensor:
        return self._data[name]

    def sha256(self) -> None:
        return None
