"""Writing a safetensors file tensor by tensor, in any order, so that it appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from ..errors import CheckpointError, RankError
from ..workers.ranks import Ranks
from .header import TensorInfo
from .layout import arrange, encode_header, refit
from .reader import open_checkpoint
from .sources import Verify
from .staging import StagedFile
from .strict_json import quoted
from .views import byte_view


class CheckpointWriter:
    """Writes one file; to be used in a `with` block, and finished by `commit`.

    The layout is fixed at the start, and the whole file is allocated under a temporary name in the same folder, so a
    full disk is found before the work. Leaving the block without `commit`, for whatever reason, removes the temporary
    file and leaves an older file at `path` as it was. The same layout, tensors and metadata give the same bytes.

    layout: name -> (dtype, shape). metadata: the header's text fields. overwrite: replace an older file at `path`; else
    one is refused on entry, and by `commit` if it appeared since. ranks: several write the same file, each its own
    tensors; rank 0 allocates and finishes it.
    Raises CheckpointError for a layout or metadata that the format cannot hold; on entry for a folder that is missing
    or not writable, a target that is a folder, and a disk that is full.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str],
        *,
        overwrite: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        self.path = Path(path)
        self._ranks = ranks or Ranks()
        self.tensors = arrange(layout, self.path)
        self._header = encode_header(self.tensors.values(), metadata, self.path)
        self._missing = dict.fromkeys(self.tensors)
        data_size = max((info.end for info in self.tensors.values()), default=0)
        self._file = StagedFile(self.path, len(self._header) + data_size, overwrite=overwrite)

    def __enter__(self) -> CheckpointWriter:
        try:
            if self._ranks.rank == 0:
                self._file.create()
            self._meet()
        except BaseException:
            self._file.discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.discard()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Fill the slot `name`; `tensor` has the slot's dtype and shape, lies on any device, in any memory order.

        Raises CheckpointError when there is no such slot, it is filled, the tensor does not fit or the disk fails.
        """
        info = self._slot(name)
        if (tensor.dtype, tuple(tensor.shape)) != (info.dtype, info.shape):
            given, wanted = _describe(tensor.dtype, tensor.shape), _describe(info.dtype, info.shape)
            raise self._refusal(name, f"is {given}, not {wanted}")
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            raise self._refusal(name, "is sparse or has no data")
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        self._file.write_at(len(self._header) + info.start, byte_view(plain))
        del self._missing[name]

    def write_chunks(self, name: str, chunks: Iterable[memoryview | bytes]) -> None:
        """Fill the slot `name` with bytes that come in pieces, together exactly its size. Errors as `write`."""
        info = self._slot(name)
        position = info.start
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            if position + len(view) > info.end:
                raise self._refusal(name, f"has more than the {info.nbytes} bytes of its place")
            self._file.write_at(len(self._header) + position, view)
            position += len(view)
        if position != info.end:
            raise self._refusal(name, f"has {position - info.start} bytes, not the {info.nbytes} of its place")
        del self._missing[name]

    def commit(self, metadata: Mapping[str, str] | None = None, verify: Verify | None = None) -> None:
        """Put the file in its place.

        Args:
            metadata: replaces the metadata given at the start; rank 0's counts.
            verify: looks at the whole file under its temporary name, and raises where it must not appear.

        Raises:
            CheckpointError: a slot is empty, `metadata` needs more room than the first one took, or the disk fails.
            RankError: another rank failed.
        """
        if self._ranks.size > 1:
            self._file.flush()
        for missing in self._ranks.share(self._missing):
            self._missing = {name: None for name in self._missing if name in missing}
        if self._ranks.rank == 0:
            self._finish(metadata, verify)
        # Until the file has its name, every rank would remove it at an error; what happens to a rank later is no error.
        with suppress(RankError) if self._ranks.rank == 0 else nullcontext():
            self._ranks.share(None)

    def _meet(self) -> None:
        """Let all ranks write to rank 0's file, if they have the same plan for it."""
        header = hashlib.sha256(self._header).hexdigest()
        temporary, expected = self._ranks.share((self._file.shared_name, header))[0]
        if header != expected:
            raise CheckpointError(
                f"{self.path} cannot be written by several ranks: their sources, settings or versions are not the same."
            )
        if temporary is not None and self._ranks.rank:
            self._file.join(temporary)

    def _finish(self, metadata: Mapping[str, str] | None, verify: Verify | None) -> None:
        if self._missing:
            count, first = len(self._missing), quoted(next(iter(self._missing)))
            raise CheckpointError(f"{self.path} is incomplete: {count} tensors are missing, {first} first.")
        if metadata is not None:
            header = encode_header(self.tensors.values(), metadata, self.path)
            self._header = refit(header, len(self._header), self.path)
        self._file.write_at(0, self._header)
        if verify is not None:
            with open_checkpoint(self._file.temporary) as written:
                verify(written)
        self._file.publish()

    def _slot(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise self._refusal(name, "is not part of the layout")
        if name not in self._missing:
            raise self._refusal(name, "is written twice")
        return self.tensors[name]

    def _refusal(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} cannot be written: tensor {quoted(name)} {what}.")


def _describe(dtype: torch.dtype, shape: Iterable[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
