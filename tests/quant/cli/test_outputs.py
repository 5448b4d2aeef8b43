"""Every file that a command writes: none replaces an input, none is written where it must not be, all appear whole."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.quant.cli import convert
from safetensors.torch import load_file, save_file

from .conftest import Ran, Run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX")

Write = Callable[..., Ran]

RECORD = """
import torch

def main(recorder):
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    with recorder.watch(model), torch.inference_mode():
        model(torch.randn(64, 16))
"""

SUFFIXES = {"output": ".safetensors", "report": ".json", "table": ".txt", "record": ".safetensors"}


@pytest.fixture
def write(run: Run, tiny_path: Path, tmp_path: Path) -> Write:
    """Run the command that writes the given kind of file; the quantized model goes to ``q.safetensors``."""
    (tmp_path / "user.py").write_text(RECORD)

    def call(kind: str, path: object, *more: object) -> Ran:
        if kind == "record":
            return run("record", f"{tmp_path / 'user.py'}:main", "-o", path, *more)
        if kind == "output":
            return run("-i", tiny_path, "-o", path, *more)
        return run("-i", tiny_path, "-o", tmp_path / "q.safetensors", "--report", path, *more)

    return call


def contents(folder: Path) -> dict[str, Any]:
    """Every name in a folder; of files their bytes, of links their targets."""
    return {
        path.name: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in folder.iterdir()
    }


def make_special(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        (path / "x").mkdir(parents=True)
    else:
        path.symlink_to({"device": "/dev/null", "dangling link": path.with_name("none"), "loop": path}[kind])


SPECIAL = {
    "pipe": "not a regular file",
    "folder": "is a folder",
    "device": "not a regular file",
    "dangling link": "link to a file that does not exist",
    "loop": "cannot be written",
}


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("kind", SUFFIXES)
def test_special_targets_are_refused(
    write: Write, tmp_path: Path, kind: str, special: str, overwrite: tuple[str, ...]
) -> None:
    if (kind, special) == ("output", "folder"):
        pytest.skip("a folder as output takes the default name")
    path = tmp_path / f"special{SUFFIXES[kind]}"
    make_special(path, special)
    before = contents(tmp_path)
    ran = write(kind, path, *overwrite)
    assert ran.code == 1
    assert str(path) in ran.error and SPECIAL[special] in ran.error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", SUFFIXES)
def test_empty_names_are_refused(write: Write, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert write(kind, "").code == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("link", ["itself", "hard link", "symbolic link"])
@pytest.mark.parametrize("kind", ["output", "report", "table"])
@pytest.mark.parametrize("role", ["source", "recipe", "calibration", "shard", "index"])
def test_inputs_are_never_replaced(
    run: Run, tiny_path: Path, calibration_path: Path, tmp_path: Path, kind: str, role: str, link: str
) -> None:
    recipe, index = tmp_path / "recipe.json", tmp_path / "m.safetensors.index.json"
    recipe.write_text(json.dumps(Recipe(format="int8_row").to_dict()))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(load_file(tiny_path), tiny_path.name)}))
    source = index if role in ("shard", "index") else tiny_path
    inputs = {
        "source": tiny_path,
        "recipe": recipe,
        "calibration": calibration_path,
        "shard": tiny_path,
        "index": index,
    }
    path = inputs[role]
    if link != "itself" or path.suffix != SUFFIXES[kind]:
        path = tmp_path / f"other{SUFFIXES[kind]}"
        (os.symlink if link == "symbolic link" else os.link)(inputs[role], path)
    before = contents(tmp_path) | contents(calibration_path.parent)
    words = ["-i", source, "--recipe", recipe, "--calibration", calibration_path, "--overwrite"]
    words += ["-o", path] if kind == "output" else ["-o", tmp_path / "q.safetensors", "--report", path]
    ran = run(*words)
    assert ran.code == 1
    assert str(path) in ran.error and "is the file that is read" in ran.error
    assert contents(tmp_path) | contents(calibration_path.parent) == before


@pytest.mark.parametrize("kind", SUFFIXES)
def test_existing_files_stay_without_overwrite(write: Write, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"old{SUFFIXES[kind]}"
    path.write_bytes(b"old")
    before = contents(tmp_path)
    ran = write(kind, path)
    assert ran.code == 1
    assert str(path) in ran.error and "add --overwrite" in ran.error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", SUFFIXES)
def test_replaced_files_keep_their_permissions(write: Write, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"old{SUFFIXES[kind]}"
    path.write_bytes(b"old")
    path.chmod(0o600)
    assert write(kind, path, "--overwrite").code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() != b"old"


@pytest.mark.parametrize("kind", ["report", "table"])
def test_report_that_appears_meanwhile_stays(
    write: Write, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"r{SUFFIXES[kind]}"

    def quantize(*args: Any, **options: Any) -> Any:
        path.write_bytes(b"somebody's")
        return quantize_file(*args, **options)

    monkeypatch.setattr(import_module(convert.__module__), "quantize_file", quantize)
    ran = write(kind, path)
    assert ran.code == 1
    assert f"The model is written, but its report is not: {path} exists" in ran.error
    assert path.read_bytes() == b"somebody's"
    assert "a.weight" in load_file(tmp_path / "q.safetensors")


@pytest.mark.parametrize("kind", ["report", "record"])
def test_failed_write_leaves_the_old_file(
    write: Write, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fsync = tmp_path / f"old{SUFFIXES[kind]}", os.fsync
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        if ".old" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    ran = write(kind, path, "--overwrite")
    assert ran.code == 1
    assert "the disk is full" in ran.error
    assert path.read_bytes() == b"old"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_source_of_another_file_system_object_is_untouched(write: Write, tmp_path: Path) -> None:
    """A link to a file that is no input is replaced itself; the file behind it stays."""
    other, path = tmp_path / "other.safetensors", tmp_path / "link.safetensors"
    save_file({"x": torch.ones(2)}, other)
    path.symlink_to(other)
    before = other.read_bytes()
    assert write("output", path, "--overwrite").code == 0
    assert other.read_bytes() == before
    assert not path.is_symlink() and "a.weight" in load_file(path)
