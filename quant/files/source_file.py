"""A file that is read in checked pieces, and hashed while it is read."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..errors import CheckpointError

PIECE = 8 * 2**20  # bytes a system call: long enough to be fast, short enough to stay in the cache for the hash


class ByteSource(Protocol):
    """The bytes of a file: all of them on a disk, or some in memory."""

    path: Path
    size: int

    def read(self, offset: int, count: int) -> bytearray: ...
    def read_into(self, offset: int, view: memoryview) -> None: ...
    def sha256(self) -> str: ...
    def close(self) -> None: ...


class SourceFile:
    """A regular file opened for reading; not to be shared between threads.

    Bytes are hashed as they are delivered, as long as the reads follow the file's order; `sha256` reads only what is
    left. No memory mapping: mapped pages count as the process's resident memory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises CheckpointError when `path` is missing, a folder, not a regular file, or may not be read."""
        self.path = Path(path)
        self._file = _open(self.path)
        self._stamp = self._read_stamp()
        self.size = self._stamp.size
        self._hash = hashlib.sha256()
        self._hashed = 0

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes from byte `offset`, in a buffer of their own; errors as `read_into`."""
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer))
        return buffer

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (of bytes) from byte `offset`.

        Raises CheckpointError when the file ends early, has changed since it was opened, or cannot be read.
        """
        if self._file.closed:
            raise CheckpointError(f"{self.path} is read after it was closed.")
        for position in range(0, len(view), PIECE):
            piece = view[position : position + PIECE]
            self._fill(offset + position, piece)
            self._absorb(offset + position, piece)

    def sha256(self) -> str:
        """SHA-256 of the whole file in lower-case hex; reads only what is not hashed yet. Errors as `read_into`."""
        buffer = memoryview(bytearray(min(PIECE, self.size - self._hashed)))
        while self._hashed < self.size:
            self.read_into(self._hashed, buffer[: self.size - self._hashed])
        self._refuse_change()
        return self._hash.hexdigest()

    def _fill(self, offset: int, piece: memoryview) -> None:
        filled = 0
        try:
            self._file.seek(offset)
            while filled < len(piece):
                count = self._file.readinto(piece[filled:])
                if not count:
                    break
                filled += count
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}.") from error
        self._refuse_change()
        if filled < len(piece):
            raise CheckpointError(f"{self.path} ends at byte {offset + filled}, before the data it announces.")

    def _absorb(self, offset: int, piece: memoryview) -> None:
        if offset <= self._hashed < offset + len(piece):
            self._hash.update(piece[self._hashed - offset :])
            self._hashed = offset + len(piece)

    def _refuse_change(self) -> None:
        stamp = self._read_stamp()
        if stamp.links != self._stamp.links:  # another name was made or removed, which changes ctime as well
            self._stamp = replace(self._stamp, links=stamp.links, ctime=stamp.ctime)
        if stamp != self._stamp:
            raise CheckpointError(f"{self.path} was changed by another program while it was read; start again.")

    def _read_stamp(self) -> _Stamp:
        try:
            status = os.fstat(self._file.fileno())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} can no longer be read: {error}.") from error
        return _Stamp(size=status.st_size, mtime=status.st_mtime_ns, ctime=status.st_ctime_ns, links=status.st_nlink)


@dataclass(frozen=True, kw_only=True)
class _Stamp:
    """What changes with an open file."""

    size: int
    mtime: int
    """A program can set it back."""
    ctime: int
    """No program can, but permissions and links change it, too."""
    links: int


def _open(path: Path) -> io.FileIO:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path} is a folder; name a .safetensors file or a .safetensors.index.json.")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is not a regular file.")
        return open(path, "rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} does not exist.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not a file name: {error}.") from error
