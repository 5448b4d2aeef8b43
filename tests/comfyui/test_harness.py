"""tools/comfyui: where a ComfyUI is looked for, and how its interpreter runs functions of this checkout."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from calibrated_rounding.tools.comfyui import FP8_COMPUTE, PACK, Host, HostError, HostMissing, find_host
from calibrated_rounding.tools.comfyui import host as host_module

REFERENCE = re.compile(r'"((?:tests|tools|benchmarks)\.[\w.]+):(\w+)"')
"""A function as `Host.call` takes it."""


def make_comfyui(path: Path, version: str = "0.29.0", python: str | None = ".venv/bin/python") -> Path:
    """Make a folder that looks like a ComfyUI."""
    path.mkdir(parents=True)
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    if python:
        (path / python).parent.mkdir(parents=True)
        (path / python).touch()
    return path


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home folder without a ComfyUI, and a pack that lies in none."""
    monkeypatch.setattr(host_module, "PACK", tmp_path / "comfy" / "custom_nodes" / "pack")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return tmp_path / "home"


def test_named_folder_comes_first(home: Path, tmp_path: Path) -> None:
    make_comfyui(home / "ComfyUI")
    named = make_comfyui(tmp_path / "named", "0.33.1", "venv/Scripts/python.exe")
    host = find_host({"COMFYUI_PATH": str(named)})
    assert (host.path, host.python, host.version) == (named, named / "venv/Scripts/python.exe", "0.33.1")


def test_comfyui_around_pack_precedes_home(home: Path, tmp_path: Path) -> None:
    make_comfyui(home / "ComfyUI")
    around = make_comfyui(tmp_path / "comfy")
    assert find_host({}).path == around


def test_home_comes_last(home: Path) -> None:
    at_home = make_comfyui(home / "ComfyUI")
    assert find_host({}).path == at_home


@pytest.mark.usefixtures("home")
def test_named_interpreter_comes_first(tmp_path: Path) -> None:
    make_comfyui(tmp_path / "comfy")
    assert find_host({"COMFYUI_PYTHON": sys.executable}).python == Path(sys.executable)


@pytest.mark.usefixtures("home")
def test_missing_comfyui_names_searched_places() -> None:
    with pytest.raises(HostMissing, match=r"COMFYUI_PATH, the folder that the pack is installed in, ~/ComfyUI"):
        find_host({})


def test_wrong_named_folder_is_an_error(home: Path, tmp_path: Path) -> None:
    make_comfyui(home / "ComfyUI")
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
@pytest.mark.usefixtures("home")
def test_unusable_comfyui_names_reason(tmp_path: Path, version: str, python: str | None, reason: str) -> None:
    make_comfyui(tmp_path / "comfy", version, python)
    with pytest.raises(HostMissing, match=reason):
        find_host({})


def test_values_cross_interpreters_unchanged(host: Host) -> None:
    codes = torch.arange(6, dtype=torch.int8).view(2, 3).T
    values = {"count": 3, "text": "漢字", "none": None, "nested": {"rows": [codes, codes[0]], "infinity": float("inf")}}
    result = host.call("tests.comfyui.programs.harness:echo", **values, path=Path("a") / "b")
    rows, expected = (both["nested"].pop("rows") for both in (result, values))
    assert [row.dtype for row in rows] == [torch.int8] * 2
    assert all(torch.equal(row, other) for row, other in zip(rows, expected, strict=True))
    assert result == {**values, "path": "a/b"}


@pytest.mark.parametrize("options", [(), (FP8_COMPUTE,)], ids=["default", "fp8_compute"])
def test_programs_run_on_cpu_without_pack(host: Host, options: tuple[str, ...]) -> None:
    state = host.call("tests.comfyui.programs.harness:describe_process", options=options)
    assert state == {"inference": True, "device": "cpu", "fp8_compute": bool(options), "pack": []}


def test_program_error_is_shown(host: Host) -> None:
    with pytest.raises(HostError, match="ZeroDivisionError"):
        host.call("tests.comfyui.programs.harness:fail")


def test_slow_program_is_ended(host: Host) -> None:
    with pytest.raises(HostError, match=r"harness:sleep did not end within 1 s"):
        host.call("tests.comfyui.programs.harness:sleep", timeout=1)


def test_every_called_program_exists() -> None:
    """Renamed functions are found without a ComfyUI, too."""
    references = {match for path in find_sources() for match in REFERENCE.findall(path.read_text(encoding="utf-8"))}
    assert len(references) > 20
    for module, function in references:
        tree = ast.parse((PACK / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{module}:{function}"
        )


def find_sources() -> Iterator[Path]:
    for folder in ("tests/comfyui", "tools", "benchmarks"):
        yield from (PACK / folder).rglob("*.py")
