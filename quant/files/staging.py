"""A file that appears under its name only when it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

from ..errors import CheckpointError
from .targets import refuse_special

_SUFFIX = ".part"
_PIECE = 64 * 2**20  # bytes a system call, so that an interrupt is heeded soon
_NO_ALLOCATION = {errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
_REASONS = {
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "its folder does not exist",
    errno.EACCES: "permission denied (read-only, or open in another program)",
    errno.EPERM: "permission denied (read-only, or open in another program)",
    errno.EROFS: "the disk is read-only",
    errno.EFBIG: "the file would be larger than the disk's format or the user's limit allows",
}


if sys.platform == "win32":

    def _lock(descriptor: int) -> bool | None:
        return None

else:
    import fcntl

    def _lock(descriptor: int) -> bool | None:
        """True: locked. False: another process has the lock. None: there are no locks here."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True


class StagedFile:
    """`size` bytes beside `target` under a temporary name, until `publish` gives them the target's.

    A file that is replaced passes its permission bits on. Without `overwrite` none is: `create` refuses a target that
    exists, and `publish` one that appeared since, so that only one of two writers gets the name.

    The temporary name begins with a dot and ends in .part, so no loader lists it. Its owner holds a lock on it, which
    the system lets go when the process dies; that tells the next run what is left over.
    Every method raises CheckpointError for what the system refuses, the disk being full included.
    """

    count_published: ClassVar[int] = 0
    """How many files this process has given their names."""

    def __init__(self, target: Path, size: int, *, overwrite: bool = True) -> None:
        self.target = target.absolute()  # the process may change its folder before the end
        self.size = size
        self.overwrite = overwrite
        self._temporary: Path | None = None
        self._descriptor: int | None = None
        self._mode: int | None = None
        _staged.add(self)

    def create(self) -> None:
        """Remove what dead processes left for this target, then allocate the whole file."""
        with self._explained():
            refuse_special(self.target)
            if not self.overwrite and os.path.lexists(self.target):
                raise CheckpointError(f"{self.target} exists and is not to be replaced; choose another name.")
            self._mode = _replaced_mode(self.target)
            remove_stale(self.target)
            for _ in range(8):
                self._open()
                # A cleaner in another process may have removed the file before it was locked.
                if _lock(self._opened()) is not False and self._is_named():
                    break
                self.discard()
            _allocate(self._opened(), self.size, self.target.parent)

    @property
    def shared_name(self) -> str | None:
        """Name of the temporary file, with which another process can `join`; None where it is not there yet."""
        return None if self._temporary is None else self._temporary.name

    def join(self, name: str) -> None:
        """Open the temporary file that another process created for the same target, and locks.

        `discard` removes it for all.
        """
        self._temporary = self.target.with_name(name)
        with self._explained():
            self._descriptor = os.open(self._temporary, os.O_RDWR | getattr(os, "O_BINARY", 0))

    def flush(self) -> None:
        """Bring the bytes to the disk, where other machines see them."""
        with self._explained():
            os.fsync(self._opened())

    def write_at(self, offset: int, data: memoryview | bytes) -> None:
        """Put `data` at byte `offset`."""
        view = memoryview(data)
        with self._explained():
            os.lseek(self._opened(), offset, os.SEEK_SET)
            while view:
                view = view[os.write(self._opened(), view[:_PIECE]) :]

    @property
    def temporary(self) -> Path:
        """Path of the bytes until `publish`."""
        if self._temporary is None:
            raise CheckpointError(f"{self.target} is not open for writing.")
        return self._temporary

    def publish(self) -> None:
        """Bring everything to the disk and give the file the target's name, in one step."""
        with self._explained():
            descriptor = self._opened()
            os.fsync(descriptor)
            if self._temporary is None or not self._is_named() or os.fstat(descriptor).st_size != self.size:
                raise CheckpointError(f"{self.target} was not written: another program changed the temporary file.")
            if sys.platform == "win32":  # where an open file cannot be renamed; elsewhere the lock stays to the end
                self._close()
            else:
                self._copy_mode(descriptor)
            with _naming:
                _rename(self._temporary, self.target, self.overwrite)
                StagedFile.count_published += 1
        self._temporary = None
        self._close()
        _sync_folder(self.target.parent)

    def discard(self) -> None:
        """Remove the temporary file; nothing happens where there is none."""
        try:
            self._close()
        finally:
            self.remove()
            self._temporary = None

    def remove(self) -> None:
        """Remove the temporary file, and leave it open."""
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink()

    def _open(self) -> None:
        # The name is known before the file exists, so an interrupt at any point finds what to remove.
        self._temporary = self.target.with_name(f"{_prefix(self.target)}{uuid.uuid4().hex}{_SUFFIX}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        # What replaces a file has its permissions, and none but the owner's until then.
        with _naming:
            self._descriptor = os.open(self._temporary, flags, 0o666 if self._mode is None else 0o600)

    def _copy_mode(self, descriptor: int) -> None:
        mode = _replaced_mode(self.target)
        mode = self._mode if mode is None else mode
        if mode is not None:
            os.fchmod(descriptor, mode)

    def _is_named(self) -> bool:
        """Whether the temporary name still leads to the open file."""
        try:
            return self._temporary is not None and os.path.samestat(os.fstat(self._opened()), self._temporary.stat())
        except FileNotFoundError:
            return False

    def _opened(self) -> int:
        if self._descriptor is None:
            raise CheckpointError(f"{self.target} is not open for writing.")
        return self._descriptor

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):  # what is to be kept was synced before
                os.close(descriptor)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{self.target} cannot be written: {self._reason(error)}.") from error
        except ValueError as error:
            raise CheckpointError(f"{str(self.target)!r} is not a file name: {error}.") from error

    def _reason(self, error: OSError) -> str:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _REASONS.get(error.errno or 0, error.strerror or str(error))
        with suppress(OSError):
            free = shutil.disk_usage(self.target.parent).free
            return f"the disk is full; the file needs {self.size} bytes, {free} are free"
        return f"the disk is full; the file needs {self.size} bytes"


_staged: WeakSet[StagedFile] = WeakSet()
_naming = threading.Lock()
"""Held while a file of this process gets a name."""


@contextmanager
def abandon_unfinished(published: int) -> Iterator[bool]:
    """Remove this process's temporary files from any thread, for the end of a process that cannot wait.

    Within the block no file gets a name. Descriptors stay open, as another thread may be writing to one.

    Args:
        published: `StagedFile.count_published` at the start of the work.

    Yields:
        False if a file was published since; nothing is removed then.
    """
    with _naming:
        nothing_written = StagedFile.count_published == published
        for file in list(_staged) if nothing_written else ():
            file.remove()
        yield nothing_written


def remove_stale(target: Path) -> None:
    """Remove the temporary files for `target` whose process is dead; what is in use or not ours to remove stays."""
    remove_abandoned(target.parent, _prefix(target))


def remove_abandoned(folder: Path, prefix: str = ".") -> None:
    """Remove the temporary files in `folder` whose process is dead and whose name begins with `prefix`."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if name.startswith(prefix) and name.endswith(_SUFFIX):
            with suppress(OSError):
                _remove_if_abandoned(folder / name)


def _remove_if_abandoned(path: Path) -> None:
    if sys.platform == "win32":  # where removing a file that somebody has open fails
        path.unlink()
        return
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if _lock(descriptor):
            path.unlink()
    finally:
        os.close(descriptor)


def _prefix(target: Path) -> str:
    """Begins every temporary name for `target`; the digest tells names apart that are cut to fit."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]
    return f".{target.name[:32]}.{digest}."


def _replaced_mode(target: Path) -> int | None:
    """The permission bits of the file that will be replaced; None: there is none."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode) & 0o777
    return None


def _allocate(descriptor: int, size: int, folder: Path) -> None:
    """Take all the room now, so that a full disk is found before the work and not after it."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, size)


def _rename(temporary: Path, target: Path, overwrite: bool) -> None:
    """Raises CheckpointError if a file called `target` exists and is not to be replaced."""
    try:
        if overwrite:
            os.replace(temporary, target)
        elif sys.platform == "win32":
            os.rename(temporary, target)  # which replaces nothing there
        else:
            _rename_exclusively(temporary, target)
    except FileExistsError:
        raise CheckpointError(
            f"{target} exists by now: another program wrote it meanwhile, and it was not replaced; choose another name."
        ) from None


def _rename_exclusively(temporary: Path, target: Path) -> None:
    """Raises FileExistsError where a file called `target` exists."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without hard links the name is taken by an empty file first.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.replace(temporary, target)
    else:
        os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    # Not every system opens a folder or syncs it; the file itself is safe by then.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
