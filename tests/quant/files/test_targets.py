"""Targets that cannot be written: each is refused before the work, as far as the system knows by then."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch
from calibrated_rounding.quant.files import CheckpointWriter, refuse_same_file, staging
from calibrated_rounding.quant.files.targets import list_files

LAYOUT = {"a": (torch.uint8, (1000,))}


def test_impossible_targets_are_refused(tmp_path, refused):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    cases = [
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "m", "folder does not exist"),
        (file / "m", "folder does not exist"),
        (tmp_path / "nul\0", "not a file name"),
    ]
    for path, text in cases:
        with refused(text), CheckpointWriter(path, LAYOUT, {}):
            pytest.fail("the work began")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
def test_a_device_is_not_replaced(refused):
    with refused("/dev/null", "not a regular file"), CheckpointWriter("/dev/null", LAYOUT, {}):
        pytest.fail("the work began")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
def test_pipes_and_broken_links_are_refused(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    texts = {"pipe": "not a regular file", "dangling": "link to a file that does not exist", "loop": "symbolic links"}
    for name, text in texts.items():
        with refused(tmp_path / name, text), CheckpointWriter(tmp_path / name, LAYOUT, {}):
            pytest.fail("the work began")
    assert sorted(os.listdir(tmp_path)) == sorted(texts)


def test_existing_file_is_refused_before_the_work(tmp_path, refused):
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    with refused(target, "not to be replaced"), CheckpointWriter(target, LAYOUT, {}, overwrite=False):
        pytest.fail("the work began")
    assert target.read_bytes() == b"old"


def test_files_of_a_checkpoint_are_listed(tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"b": "2.safetensors", "a": "1.safetensors", "c": "2.safetensors"}}')
    assert list_files(index) == [index, tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    assert list_files(tmp_path / "m.safetensors") == [tmp_path / "m.safetensors"]


def test_an_output_that_is_an_input_is_refused(tmp_path, refused):
    source, other = tmp_path / "source", tmp_path / "other"
    for path in (source, other):
        path.write_bytes(b"x")
    os.link(source, tmp_path / "hard")
    names = ["source", "hard", os.path.join("..", tmp_path.name, "source")]
    if sys.platform != "win32":
        (tmp_path / "soft").symlink_to(source)
        names.append("soft")
    for name in names:
        with refused(tmp_path / name, "is the file that is read"):
            refuse_same_file([other, str(source)], tmp_path / name)
    refuse_same_file([source, tmp_path / "none"], other)
    refuse_same_file([source], tmp_path / "none")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_found_first(small_disk, refused, save):
    path = small_disk / "m"
    with refused(path, "disk is full", "1000", "free"), CheckpointWriter(path, {"a": (torch.uint8, (10**6,))}, {}):
        pytest.fail("the work began")
    assert os.listdir(small_disk) == []
    save(path, {"a": torch.ones(1000)})


def test_disk_filling_up_is_reported(small_disk, refused, monkeypatch):
    monkeypatch.setattr(staging, "_allocate", lambda *_: None)
    layout = {"a": (torch.uint8, (10**6,))}
    with refused(small_disk / "m", "disk is full"), CheckpointWriter(small_disk / "m", layout, {}) as writer:
        writer.write("a", torch.ones(10**6, dtype=torch.uint8))
    assert os.listdir(small_disk) == []


def test_unwritable_disk_is_reported(small_disk, refused):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with refused(small_disk / "m", "read-only"), CheckpointWriter(small_disk / "m", LAYOUT, {}):
        pytest.fail("the work began")


def write(path, value, **options):
    with CheckpointWriter(path, LAYOUT, {}, **options) as writer:
        writer.write("a", torch.full((1000,), value, dtype=torch.uint8))
        yield
        writer.commit()


@pytest.fixture(params=["hard links", "no hard links"])
def linking(request, monkeypatch):
    """File systems with and without hard links."""

    def fail(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", fail)


def test_file_that_appears_meanwhile_stays(tmp_path, refused, linking):
    target = tmp_path / "m.safetensors"
    writing = write(target, 1, overwrite=False)
    next(writing)
    target.write_bytes(b"somebody's")
    with refused(target, "not replaced"):
        next(writing)
    assert target.read_bytes() == b"somebody's"
    assert os.listdir(tmp_path) == [target.name]


def test_two_writers_give_two_answers(tmp_path, refused, linking):
    target = tmp_path / "m.safetensors"
    first, second = (write(target, value, overwrite=False) for value in (1, 2))
    next(first)
    next(second)
    with pytest.raises(StopIteration):
        next(second)
    with refused(target, "not replaced"):
        next(first)
    assert target.read_bytes()[-1] == 2
    assert os.listdir(tmp_path) == [target.name]


def test_overwrite_replaces_in_one_step(tmp_path):
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    list(write(target, 3))
    assert target.read_bytes()[-1] == 3
