"""The command `record`: a function of the user's gets a recorder, and what it records serves --calibration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.cli.record import FILE_MODULE
from safetensors.torch import save_file

from .conftest import Run
from .test_signals import COMMAND, ENVIRONMENT

MODEL = """
from __future__ import annotations
import torch
from dataclasses import dataclass
from safetensors.torch import load_file
from weights import PATH

@dataclass
class Settings:
    batch: int = 256

def main(recorder):
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 32))
    model.load_state_dict({key.removeprefix("net."): t for key, t in load_file(PATH).items()})
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(64, 64, generator=generator) * torch.arange(1, 65) ** -0.7
    with recorder.watch(model, prefix="net."), torch.inference_mode():
        for _ in range(8):
            model(torch.randn(Settings().batch, 64, generator=generator) @ mixing.T)

def fails(recorder):
    helper()

def helper():
    raise RuntimeError("size mismatch for net.0:\\n\\t[64] and [32]")

def leaves(recorder):
    raise SystemExit("no model")

def interrupts(recorder):
    raise KeyboardInterrupt

def idles(recorder):
    pass

number = 3
"""


FAILING_LINE = MODEL.splitlines().index(next(line for line in MODEL.splitlines() if "raise RuntimeError" in line)) + 1


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("user", "weights", FILE_MODULE):
        sys.modules.pop(name, None)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """A small model's file; its folder ``code`` holds ``user.py`` (`MODEL`) and what that imports."""
    generator, path = torch.Generator().manual_seed(0), tmp_path / "net.safetensors"
    shapes = {"net.0.weight": (96, 64), "net.0.bias": (96,), "net.2.weight": (32, 96), "net.2.bias": (32,)}
    save_file({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, path)
    code = tmp_path / "code"
    code.mkdir()
    (code / "user.py").write_text(MODEL)
    (code / "weights.py").write_text(f"PATH = {str(path)!r}")
    return path


@pytest.fixture
def code(model_path: Path) -> Path:
    return model_path.parent / "code"


def test_the_whole_way(run: Run, model_path: Path, code: Path, tmp_path: Path) -> None:
    target, report = tmp_path / "c.safetensors", tmp_path / "report.json"
    ran = run("record", f"{code / 'user.py'}:main", "-o", target)
    assert (ran.code, ran.err) == (0, "")
    assert "2 layers calibrated" in ran.out and "2048 rows" in ran.out and "MB" in ran.out
    assert ran.out.splitlines()[-1] == f"Written: {target}"
    made = tmp_path / "q.safetensors"
    assert run("-i", model_path, "-o", made, "--calibration", target, "--report", report).code == 0
    layers = json.loads(report.read_text())["layers"]
    assert {layer["name"] for layer in layers} == {"net.0", "net.2"}
    assert all(pair["error"] < 0.8 * pair["nearest"] for layer in layers for pair in [layer["errors"]["output_w8a16"]])


def test_module_is_imported_from_current_folder(run: Run, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code)
    assert run("record", "user:main", "-o", "c.safetensors", "--quiet").out == ""
    assert set(Calibration.load("c.safetensors")) == {"net.0", "net.2"}


def test_new_process_finds_module_and_recorder(code: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "record", "user:main", "-o", "c.safetensors"],
        cwd=code,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert os.path.exists(code / "c.safetensors")


def test_rows_and_budget_bound_the_sample(run: Run, code: Path, tmp_path: Path) -> None:
    user, target = f"{code / 'user.py'}:main", tmp_path / "c.safetensors"
    assert run("record", user, "-o", target, "--rows", 100).code == 0
    assert {len(known.rows) for known in Calibration.load(target).values() if known.rows is not None} == {100}
    assert run("record", user, "-o", target, "--budget_gib", 0.0001, "--overwrite").code == 0
    sizes = [known.rows.nbytes for known in Calibration.load(target).samples.values() if known.rows is not None]
    assert 0 < sum(sizes) <= 0.0001 * 2**30


REFUSED = {
    "no such file": ("missing.py:main", 1, "There is no file"),
    "no such module": ("no_such_module:main", 1, "There is no module no_such_module"),
    "no such package": ("no_such.module:main", 1, "There is no module no_such.module"),
    "no such function": ("user.py:nothing", 1, "There is no 'nothing' in"),
    "no function": ("user.py:number", 1, "is no function, but int"),
    "nothing recorded": ("user.py:idles", 1, "Nothing was recorded"),
    "no function named": ("user.py", 2, "is not MODULE:FUNCTION"),
    "empty module": (":main", 2, "is not MODULE:FUNCTION"),
    "relative module": (".user:main", 1, "cannot be imported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_uncallable_function_gives_one_sentence(
    run: Run, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, exit_code, text = REFUSED[case]
    monkeypatch.chdir(code)
    ran = run("record", name, "-o", tmp_path / "c.safetensors")
    assert ran.code == exit_code
    assert text in ran.error
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize(
    ("function", "exit_code", "text"),
    [
        ("fails", 1, f"RuntimeError: size mismatch for net.0: [64] and [32] (user.py, line {FAILING_LINE})."),
        ("leaves", 1, "SystemExit: no model"),
        ("interrupts", 130, "Interrupted."),
    ],
)
def test_exception_of_function_is_shown(
    run: Run, code: Path, tmp_path: Path, function: str, exit_code: int, text: str
) -> None:
    ran = run("record", f"{code / 'user.py'}:{function}", "-o", tmp_path / "c.safetensors")
    assert ran.code == exit_code
    assert text in ran.error
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "text"),
    [("import no_such_library", "ModuleNotFoundError"), ("x = (", "SyntaxError"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_file_that_cannot_be_imported(run: Run, tmp_path: Path, source: str, text: str) -> None:
    (tmp_path / "user.py").write_text(source)
    ran = run("record", f"{tmp_path / 'user.py'}:main", "-o", tmp_path / "c.safetensors")
    assert ran.code == 1
    assert "cannot be imported" in ran.error and text in ran.error and "user.py, line 1" in ran.error


def test_the_output_is_checked_before_anything_runs(run: Run, code: Path, tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_bytes(b"old")
    outputs = {
        "old.safetensors": "add --overwrite",
        "c.json": "must end in .safetensors",
        "none/c.safetensors": "folder does not exist",
    }
    for name, text in outputs.items():
        ran = run("record", f"{code / 'user.py'}:fails", "-o", tmp_path / name)
        assert ran.code == 1
        assert text in ran.error and str(tmp_path / name) in ran.error
    assert (tmp_path / "old.safetensors").read_bytes() == b"old"
    assert run("record", f"{code / 'user.py'}:main").code == 2
    assert "--output" in run("record", f"{code / 'user.py'}:main").error


@pytest.mark.parametrize("words", [("--rows", 0), ("--rows", 1.5), ("--budget-gib", "nan"), ("--budget-gib", "inf")])
def test_sizes_that_mean_nothing_are_refused(run: Run, tmp_path: Path, words: tuple[object, ...]) -> None:
    ran = run("record", "user:main", "-o", tmp_path / "c.safetensors", *words)
    assert ran.code == 2
    assert str(words[0]) in ran.error and "above 0" in ran.error
