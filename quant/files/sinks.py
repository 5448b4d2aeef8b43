"""Where the quantized tensors go: a checkpoint file, or a state dict in memory."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from . import Checkpoint, CheckpointWriter
from .sources import Source


class Sink(Protocol):
    def write(self, name: str, tensor: Tensor) -> None: ...
    def copy(self, name: str, source: Source) -> None: ...


class StateDictSink:
    """Collects tensors; what is only copied is shared with the source."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def write(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor

    def copy(self, name: str, source: Source) -> None:
        self.tensors[name] = source.read(name)


class FileSink:
    """Writes into the slots of a checkpoint; what is only copied goes through in pieces, however large it is."""

    def __init__(self, writer: CheckpointWriter) -> None:
        self._writer = writer

    def write(self, name: str, tensor: Tensor) -> None:
        self._writer.write(name, tensor)

    def copy(self, name: str, source: Source) -> None:
        if isinstance(source, Checkpoint):
            self._writer.write_chunks(name, source.chunks(name))
        else:
            self._writer.write(name, source.read(name))
