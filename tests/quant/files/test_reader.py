from __future__ import annotations

import gc
import hashlib
import os
import sys
import weakref

import pytest
import torch
from calibrated_rounding.quant.files import open_checkpoint
from calibrated_rounding.quant.files.source_file import SourceFile
from safetensors.torch import save_file


def file_hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def path(tmp_path, save, tensors):
    return save(tmp_path / "model.safetensors", tensors, {"origin": "test"})


@pytest.fixture
def delivered(monkeypatch):
    """The (offset, size) of every read that reaches the file."""
    reads = []
    fill = SourceFile._fill

    def spy(self, offset, piece):
        reads.append((offset, len(piece)))
        fill(self, offset, piece)

    monkeypatch.setattr(SourceFile, "_fill", spy)
    return reads


def test_reads_a_file_of_the_safetensors_package(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {"format": "pt"})
    with open_checkpoint(str(path)) as checkpoint:
        assert (checkpoint.metadata, checkpoint.paths) == ({"format": "pt"}, (path,))
        assert checkpoint.shapes == {"matrix": (3, 5), "halves": (9,), "bytes": (7,)}
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.read(name), tensor)


def test_read_tensor_owns_its_memory(path):
    with open_checkpoint(path) as checkpoint:
        first = checkpoint.read("matrix")
        second = checkpoint.read("matrix")
        first.zero_()
        assert second.any()
        assert checkpoint.read("matrix").any()
    assert second.add_(1).any(), "the memory outlives the file"


def test_a_tensor_is_not_kept(path):
    with open_checkpoint(path) as checkpoint:
        gone = weakref.ref(checkpoint.read("matrix"))
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("size", [1, 4, 7, 60, 10**9])
def test_chunks_are_the_bytes(path, tensors, size):
    with open_checkpoint(path) as checkpoint:
        chunks = list(checkpoint.chunks("matrix", size))
    assert all(0 < len(chunk) <= size for chunk in chunks)
    assert b"".join(chunks) == tensors["matrix"].numpy().tobytes()


def test_chunks_need_a_size(path):
    with open_checkpoint(path) as checkpoint, pytest.raises(ValueError, match="at least one byte"):
        checkpoint.chunks("matrix", 0)


def test_the_hash_costs_no_second_pass(path, delivered):
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.tensors:
            b"".join(checkpoint.chunks(name, 5)) if name == "halves" else checkpoint.read(name)
        before = len(delivered)
        assert checkpoint.sha256() == file_hash(path)
        assert len(delivered) == before


@pytest.mark.parametrize(
    "order",
    [
        [],
        ["matrix"],
        ["bytes", "halves", "matrix"],
        ["matrix", "matrix", "halves", "matrix", "bytes", "bytes"],
        ["matrix", "bytes", "halves"],
    ],
)
def test_hash_is_independent_of_read_order(path, order):
    with open_checkpoint(path) as checkpoint:
        for name in order:
            checkpoint.read(name)
        assert checkpoint.sha256() == file_hash(path)
        checkpoint.read("bytes")
        assert checkpoint.sha256() == file_hash(path)


def test_the_hash_survives_overlapping_reads_and_long_files(tmp_path):
    path = tmp_path / "long"
    path.write_bytes(os.urandom(20 * 2**20 + 3))
    with SourceFile(path) as source:
        for offset, count in [(0, 10), (5, 10), (0, 9 * 2**20), (2**20, 10 * 2**20), (15 * 2**20, 7)]:
            assert source.read(offset, count) == path.read_bytes()[offset : offset + count]
        assert source.sha256() == file_hash(path)


def test_a_file_that_shrinks_is_refused(path, refused):
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, path.stat().st_size - 1)
        with refused(path, "changed"):
            checkpoint.read("matrix")
        with refused(path, "changed"):
            checkpoint.sha256()


def test_a_file_that_changes_is_refused(path, refused):
    with open_checkpoint(path) as checkpoint:
        checkpoint.read("matrix")
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
        os.utime(path, ns=(1, 1))
        with refused(path, "changed"):
            checkpoint.read("bytes")
        with refused(path, "changed"):
            list(checkpoint.chunks("bytes"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no time of change")
def test_change_with_its_time_put_back_is_refused(path, refused):
    os.utime(path, ns=(10**9, 10**9))
    with open_checkpoint(path) as checkpoint:
        checkpoint.read("matrix")
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
        before = path.stat().st_ctime_ns
        while path.stat().st_ctime_ns == before:  # a system's clock ticks every few milliseconds
            os.utime(path, ns=(10**9, 10**9))
        with refused(path, "changed"):
            checkpoint.read("bytes")
        with refused(path, "changed"):
            checkpoint.sha256()


def test_links_to_a_file_may_come_and_go(path, tmp_path, tensors):
    with open_checkpoint(path) as checkpoint:
        os.link(path, tmp_path / "other")
        assert torch.equal(checkpoint.read("matrix"), tensors["matrix"])
        path.unlink()
        assert torch.equal(checkpoint.read("bytes"), tensors["bytes"])
        assert checkpoint.sha256() == file_hash(tmp_path / "other")


def test_file_changed_after_reading_has_no_hash(path, refused):
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name)
        os.utime(path, ns=(1, 1))
        with refused(path, "changed"):
            checkpoint.sha256()


def test_replaced_file_is_read_unchanged(path, tmp_path, save, tensors):
    expected = file_hash(path)
    with open_checkpoint(path) as checkpoint:
        save(path, {"other": torch.ones(3)})
        assert torch.equal(checkpoint.read("matrix"), tensors["matrix"])
        assert checkpoint.sha256() == expected != file_hash(path)


def test_mistakes_are_refused(path, refused):
    with open_checkpoint(path) as checkpoint:
        with refused(path, "'nothing'"):
            checkpoint.read("nothing")
        with refused(path, "'nothing'"):
            checkpoint.chunks("nothing")
    with refused(path, "closed"):
        checkpoint.read("matrix")
    with refused(path, "closed"):
        checkpoint.sha256()


def test_failing_disk_is_reported(path, refused, monkeypatch):
    with open_checkpoint(path) as checkpoint:
        descriptor = os.open(path.parent, os.O_RDONLY)  # a folder cannot be read as a file: a real error of the system
        os.dup2(descriptor, checkpoint._sources[0]._file.fileno())
        os.close(descriptor)
        with refused(path, "cannot be read"):
            checkpoint.read("matrix")
