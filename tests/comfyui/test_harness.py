"""Finding a ComfyUI: where it is looked for, and the reason given where none can be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from calibrated_rounding.tests.comfyui import harness
from calibrated_rounding.tests.comfyui.harness import Host, HostError, HostMissing, find_host


def checkout(path: Path, version: str = "0.29.0", python: str | None = ".venv/bin/python") -> Path:
    """A folder that looks like a ComfyUI."""
    path.mkdir(parents=True)
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    if python:
        (path / python).parent.mkdir(parents=True)
        (path / python).touch()
    return path


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No ComfyUI around the pack or at home."""
    monkeypatch.setattr(harness, "PACK", tmp_path / "comfy" / "custom_nodes" / "pack")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")


def test_the_named_folder_comes_first(tmp_path: Path) -> None:
    checkout(tmp_path / "home" / "ComfyUI")
    named = checkout(tmp_path / "named", "0.33.1", "venv/Scripts/python.exe")
    found = find_host({"COMFYUI_PATH": str(named)})
    assert (found.path, found.python, found.version) == (named, named / "venv/Scripts/python.exe", "0.33.1")


def test_the_folder_that_the_pack_lies_in_comes_before_home(tmp_path: Path) -> None:
    checkout(tmp_path / "home" / "ComfyUI")
    around = checkout(tmp_path / "comfy")
    assert find_host({}).path == around


def test_home_comes_last(tmp_path: Path) -> None:
    at_home = checkout(tmp_path / "home" / "ComfyUI")
    assert find_host({}).path == at_home


def test_the_named_interpreter_comes_first(tmp_path: Path) -> None:
    checkout(tmp_path / "comfy")
    assert find_host({"COMFYUI_PYTHON": sys.executable}).python == Path(sys.executable)


def test_nothing_found_names_the_places() -> None:
    with pytest.raises(HostMissing, match=r"COMFYUI_PATH, the folder that the pack is installed in, ~/ComfyUI"):
        find_host({})


def test_a_wrong_name_is_not_passed_over(tmp_path: Path) -> None:
    checkout(tmp_path / "home" / "ComfyUI")
    with pytest.raises(HostMissing, match="which COMFYUI_PATH names"):
        find_host({"COMFYUI_PATH": str(tmp_path)})


@pytest.mark.parametrize(
    ("version", "python", "reason"),
    [
        ("0.26.9", ".venv/bin/python", r"ComfyUI 0\.26\.9 .* is older than 0\.27"),
        ("0.29.0", None, "has no .venv or venv; name its interpreter in COMFYUI_PYTHON"),
        ("unknown", ".venv/bin/python", "cannot be read"),
    ],
)
def test_a_comfyui_that_cannot_be_used(tmp_path: Path, version: str, python: str | None, reason: str) -> None:
    checkout(tmp_path / "comfy", version, python)
    with pytest.raises(HostMissing, match=reason):
        find_host({})


def test_values_come_back_from_the_host_as_they_went(host: Host) -> None:
    made = host.run("outputs |= {'twice': 2 * count, 'inference': torch.is_inference_mode_enabled()}", count=3)
    assert made == {"twice": 6, "inference": True}


def test_an_error_in_the_host_is_shown(host: Host) -> None:
    with pytest.raises(HostError, match="ZeroDivisionError"):
        host.run("1 / 0")
