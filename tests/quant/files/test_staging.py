"""Whatever happens while a file is written: the target is the old file or the whole new one; nothing is left over."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.errors import CheckpointError
from calibrated_rounding.quant.files import CheckpointWriter, staging

LAYOUT = {"a": (torch.float32, (1000,)), "b": (torch.uint8, (3,))}
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
SYSTEM_CALLS = ("open", "posix_fallocate", "lseek", "write", "fstat", "fsync", "replace", "scandir")


def write(path: Path) -> None:
    with CheckpointWriter(path, LAYOUT, {}) as writer:
        writer.write("a", torch.ones(1000))
        writer.write("b", torch.ones(3, dtype=torch.uint8))
        writer.commit()


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "out" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"older file")
    return path


def only_old(old: Path) -> bool:
    return os.listdir(old.parent) == [old.name] and old.read_bytes() == b"older file"


@pytest.fixture
def new(tmp_path):
    """The bytes that a successful run writes."""
    write(tmp_path / "reference")
    return (tmp_path / "reference").read_bytes()


class FailingSystem:
    """The os module, whose call number `fatal` among SYSTEM_CALLS fails."""

    def __init__(self, fatal: int, error: BaseException, *, after: bool) -> None:
        self.left, self.error, self.after = fatal, error, after

    def __getattr__(self, name):
        real = getattr(os, name)
        return self.failing(real) if name in SYSTEM_CALLS else real

    def failing(self, real):
        def call(*args):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise self.error
            result = real(*args)
            if self.left == 0:
                raise self.error
            return result

        return call


@pytest.mark.parametrize(
    ("error", "after"),
    [(KeyboardInterrupt(), False), (KeyboardInterrupt(), True), (OSError(errno.EIO, "I/O error"), False)],
    ids=["interrupt before", "interrupt after", "failure"],
)
def test_whichever_system_call_fails_the_target_is_whole(error, after, old, new, monkeypatch):
    fatal, outcomes = 0, set()
    while True:
        fatal += 1
        old.write_bytes(b"older file")
        system = FailingSystem(fatal, error, after=after)
        monkeypatch.setattr(staging, "os", system)
        with contextlib.suppress(KeyboardInterrupt, CheckpointError):
            write(old)
        assert os.listdir(old.parent) == [old.name]
        outcomes.add(old.read_bytes())
        if system.left > 0:
            break
    assert fatal > 8, "the calls were not intercepted"
    assert outcomes == {b"older file", new}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit, CheckpointError])
def test_an_exception_leaves_the_old_file(error, old):
    def interrupted():
        with CheckpointWriter(old, LAYOUT, {}) as writer:
            writer.write("a", torch.ones(1000))
            raise error

    with pytest.raises(error):
        interrupted()
    assert only_old(old)


def test_bytes_are_synced_before_rename(old, monkeypatch):
    calls = []

    class RecordingSystem:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(os, name)

    monkeypatch.setattr(staging, "os", RecordingSystem())
    write(old)
    assert [name for name in calls if name in ("write", "fsync", "replace")][-3:] == ["fsync", "replace", "fsync"]


def test_leaving_without_commit_leaves_the_old_file(old):
    with CheckpointWriter(old, LAYOUT, {}) as writer:
        writer.write("a", torch.ones(1000))
    assert only_old(old)


def test_nothing_exists_before_the_block_is_entered(old):
    CheckpointWriter(old, LAYOUT, {})
    assert only_old(old)


def test_target_appears_after_space_is_allocated(tmp_path, new):
    path = tmp_path / "out" / "model.safetensors"
    path.parent.mkdir()
    with CheckpointWriter(path, LAYOUT, {}) as writer:
        (temporary,) = path.parent.iterdir()
        assert temporary.name.startswith(".")
        assert temporary.suffix != ".safetensors"
        assert temporary.stat().st_size == len(new)
        if hasattr(os, "posix_fallocate"):
            assert temporary.stat().st_blocks * 512 >= len(new)
        writer.write("b", torch.ones(3, dtype=torch.uint8))
        writer.write("a", torch.ones(1000))
        writer.commit()
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == new


@POSIX
def test_file_has_default_permissions(tmp_path):
    write(tmp_path / "model")
    (tmp_path / "plain").touch()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_replaced_file_keeps_its_permissions(mode, old, new):
    old.chmod(mode)
    with CheckpointWriter(old, LAYOUT, {}) as writer:
        (temporary,) = set(old.parent.iterdir()) - {old}
        assert temporary.stat().st_mode & 0o077 == 0, "nobody else reads it before"
        writer.write("a", torch.ones(1000))
        writer.write("b", torch.ones(3, dtype=torch.uint8))
        old.chmod(mode | 0o200)  # the bits at the end count
        writer.commit()
    assert old.stat().st_mode & 0o7777 == mode | 0o200
    assert old.read_bytes() == new


def test_short_writes_are_continued(old, new, monkeypatch):
    class ShortSystem:
        def __getattr__(self, name):
            return (lambda descriptor, view: os.write(descriptor, view[:7])) if name == "write" else getattr(os, name)

    monkeypatch.setattr(staging, "os", ShortSystem())
    write(old)
    assert old.read_bytes() == new


def test_changed_working_folder_is_harmless(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with CheckpointWriter("model", {}, {}) as writer:
        monkeypatch.chdir("elsewhere")
        writer.commit()
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "model"]


def test_two_writers_do_not_disturb_each_other(old, new):
    with CheckpointWriter(old, LAYOUT, {}) as slow:
        slow.write("a", torch.zeros(1000))
        write(old)
        assert old.read_bytes() == new
        slow.write("b", torch.zeros(3, dtype=torch.uint8))
        slow.commit()
    assert os.listdir(old.parent) == [old.name]
    assert old.read_bytes()[-4003:] == bytes(4003)


def test_longest_possible_name_is_written(tmp_path):
    write(tmp_path / ("ж" * 120 + ".safetensors"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems bound names in other ways")
def test_too_long_name_is_refused_first(tmp_path, refused):
    with refused("too long"), CheckpointWriter(tmp_path / ("x" * 256), LAYOUT, {}):
        pytest.fail("the work began")


def test_a_temporary_file_that_somebody_removes_is_noticed(old, refused):
    with refused(old, "another program"), CheckpointWriter(old, {}, {}) as writer:
        next(path for path in old.parent.iterdir() if path != old).unlink()
        writer.commit()
    assert only_old(old)


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.EACCES, "permission denied"), (errno.EROFS, "read-only"), (errno.EDQUOT, "disk is full")],
)
def test_system_errors_are_explained(number, text, old, refused, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(staging, "_allocate", refuse)
    with refused(old, text):
        write(old)
    assert only_old(old)


def test_without_allocation_the_free_room_is_compared(old, refused, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    write(old)
    huge = {"a": (torch.uint8, (2**50,))}
    with refused(old, "disk is full", "needs 1125899906842"), CheckpointWriter(old, huge, {}):
        pytest.fail("the work began")
    assert os.listdir(old.parent) == [old.name]
