"""Destinations of quantized tensors: a checkpoint file, or a state dict in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor

from ..workers.ranks import Ranks
from .reader import Checkpoint
from .sources import Source, StateDictSource, Verify
from .tensors import Layout
from .writer import CheckpointWriter


class Output(Protocol):
    """Takes the tensors of a layout, each once, in any order."""

    def write(self, name: str, tensor: Tensor) -> None: ...
    def copy(self, name: str, source: Source) -> None:
        """Take a tensor of the source as it is."""
        ...

    def commit(self, metadata: Mapping[str, str], verify: Verify) -> None:
        """Finish, unless ``verify`` raises; without it nothing is left behind."""
        ...


class Sink(Protocol):
    def open(self, layout: Layout, metadata: Mapping[str, str]) -> AbstractContextManager[Output]:
        """Make room for the tensors of ``layout``. ``metadata`` is at least as long as the one that `commit` takes."""
        ...


class StateDictSink:
    """Collects tensors in memory; a copied tensor is shared with the source."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    @contextmanager
    def open(self, layout: Layout, metadata: Mapping[str, str]) -> Iterator[StateDictSink]:
        yield self

    def write(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor

    def copy(self, name: str, source: Source) -> None:
        self.tensors[name] = source.read(name)

    def commit(self, metadata: Mapping[str, str], verify: Verify) -> None:
        verify(StateDictSource(self.tensors, metadata))


class FileSink:
    """Writes a checkpoint file, which appears whole or not at all."""

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = True, ranks: Ranks | None = None) -> None:
        self.path, self.overwrite, self.ranks = path, overwrite, ranks

    @contextmanager
    def open(self, layout: Layout, metadata: Mapping[str, str]) -> Iterator[_FileOutput]:
        with CheckpointWriter(self.path, layout, metadata, overwrite=self.overwrite, ranks=self.ranks) as writer:
            yield _FileOutput(writer)


class _FileOutput:
    def __init__(self, writer: CheckpointWriter) -> None:
        self._writer = writer
        self.write, self.commit = writer.write, writer.commit

    def copy(self, name: str, source: Source) -> None:
        """In pieces, however large the tensor is."""
        if isinstance(source, Checkpoint):
            self._writer.write_chunks(name, source.chunks(name))
        else:
            self._writer.write(name, source.read(name))
