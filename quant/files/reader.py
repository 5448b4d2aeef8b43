"""Reading a checkpoint tensor by tensor: one safetensors file, or shards under a `*.safetensors.index.json`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from ..errors import CheckpointError
from .buffers import BufferPool
from .header import Header, TensorInfo, parse_header
from .shards import INDEX_SUFFIX, read_weight_map
from .source_file import PIECE, ByteSource, SourceFile
from .strict_json import quoted
from .views import byte_view


class Checkpoint:
    """An open checkpoint; `open_checkpoint` makes one. Closed by `close` or by leaving a `with` block.

    path: what was opened. paths: every file that belongs to it (the index first, if there is one).
    tensors: name -> TensorInfo, in file order (shards by file name, tensors by offset). shapes: name -> shape.
    metadata: the header's text fields; of several shards the union, where the first shard wins.

    Nothing is cached: the caller holds what it has read, and only that. Not to be shared between threads.
    """

    def __init__(self, path: Path, paths: Sequence[Path], shards: Sequence[tuple[ByteSource, Header]]) -> None:
        self.path = path
        self.paths = tuple(paths)
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._buffers = BufferPool()
        self._sources = [source for source, _ in shards]
        self._places: dict[str, tuple[ByteSource, int]] = {}
        for source, header in shards:
            self.tensors.update(header.tensors)
            self.metadata = {**header.metadata, **self.metadata}
            self._places.update({i.name: (source, header.data_start + i.start) for i in header.tensors.values()})
        self.shapes = {name: info.shape for name, info in self.tensors.items()}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` on the CPU, in memory of its own.

        Raises CheckpointError when there is no such tensor, or when the file changed, shrank or cannot be read.
        """
        source, offset = self._place(name)
        info = self.tensors[name]
        tensor = self._buffers.empty(info.shape, info.dtype)
        source.read_into(offset, byte_view(tensor))
        return tensor

    def chunks(self, name: str, size: int = PIECE) -> Iterator[memoryview]:
        """The bytes of tensor `name` in pieces of at most `size` bytes, each in memory of its own; errors as `read`."""
        source, offset = self._place(name)
        if size < 1:
            raise ValueError(f"a chunk has at least one byte, not {size}")
        return _chunks(source, offset, offset + self.tensors[name].nbytes, size)

    def sha256(self) -> str:
        """SHA-256 in lower-case hex of the file; of shards, of their SHA-256 digests (raw) in order of file name.

        Costs no second pass where the tensors were read in file order. Errors as `read`.
        """
        digests = [source.sha256() for source in self._sources]
        if self.paths == (self.path,):
            return digests[0]
        return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()

    def _place(self, name: str) -> tuple[ByteSource, int]:
        if name not in self._places:
            raise CheckpointError(f"{self.path} holds no tensor {quoted(name)}.")
        return self._places[name]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open one safetensors file, or the shards that a `*.safetensors.index.json` lists; reads headers only.

    Raises CheckpointError, naming the file and the tensor, for everything that is not a whole and valid checkpoint.
    """
    path = Path(path)
    with ExitStack() as opened:
        if path.name.lower().endswith(INDEX_SUFFIX):
            weight_map = read_weight_map(path)
            files = sorted({path.parent / shard for shard in weight_map.values()}, key=Path.as_posix)
            shards = [_open_shard(file, opened) for file in files]
            checkpoint = Checkpoint(path, [path, *files], _select(path, weight_map, shards))
        else:
            checkpoint = Checkpoint(path, [path], [_open_shard(path, opened)])
        opened.pop_all()
    return checkpoint


def _open_shard(path: Path, opened: ExitStack) -> tuple[ByteSource, Header]:
    source = opened.enter_context(SourceFile(path))
    return source, parse_header(source)


def _select(
    index: Path, weight_map: Mapping[str, str], shards: Sequence[tuple[ByteSource, Header]]
) -> list[tuple[ByteSource, Header]]:
    """The shards with the tensors that the index assigns to them; both sides must know every tensor."""
    headers = {source.path: header for source, header in shards}
    for name, shard in weight_map.items():
        if name not in headers[index.parent / shard].tensors:
            raise CheckpointError(f"{index} places tensor {quoted(name)} in {shard}, which does not hold it.")
    for source, header in shards:
        unlisted = next((name for name in header.tensors if name not in weight_map), None)
        if unlisted is not None:
            raise CheckpointError(f"{source.path} holds tensor {quoted(unlisted)}, which {index.name} does not list.")
    return [(source, _restricted(index.parent, source, header, weight_map)) for source, header in shards]


def _restricted(folder: Path, source: ByteSource, header: Header, weight_map: Mapping[str, str]) -> Header:
    tensors = {name: info for name, info in header.tensors.items() if folder / weight_map[name] == source.path}
    return Header(tensors, header.metadata, header.data_start)


def _chunks(source: ByteSource, start: int, end: int, size: int) -> Iterator[memoryview]:
    for offset in range(start, end, size):
        yield memoryview(source.read(offset, min(size, end - offset)))
