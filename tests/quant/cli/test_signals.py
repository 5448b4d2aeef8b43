"""What only a process of its own can show: signals in the middle of a run, and a reader that goes away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.cli import signals
from calibrated_rounding.quant.cli.signals import Stop, stop_on_signals
from calibrated_rounding.quant.files.staging import StagedFile, abandon_unfinished
from calibrated_rounding.quant.files.text_file import write_text
from calibrated_rounding.tests.quant.processes import ENVIRONMENT
from safetensors.torch import save_file

COMMAND = [sys.executable, "-m", "calibrated_rounding.quant"]

pytestmark = pytest.mark.usefixtures("interruptible")

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture
def slow_path(tmp_path: Path) -> Path:
    """A model that takes tens of seconds with the arguments of `SLOW`."""
    path = tmp_path / "slow.safetensors"
    save_file({f"layers.{i}.weight": torch.randn(256, 256) for i in range(40)}, path)
    return path


SLOW = ["--optimizer", "original", "--num_iter", "300"]


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing(number: signal.Signals, slow_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "-i", slow_path, *SLOW], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "layers." in first, "the first layers are done"
    assert len(os.listdir(slow_path.parent)) == 2, "the output is under way"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    assert [line for line in err.splitlines() if "%" not in line] == ["error: Stopped on request; nothing was written."]
    assert os.listdir(slow_path.parent) == [slow_path.name]


OCCUPIED = """
import sys, time
from calibrated_rounding.quant.cli import main
from calibrated_rounding.quant.layer import nearest

round_nearest, calls = nearest.round_nearest, []

def occupied(*args):
    calls.append(args)
    if len(calls) == 3:
        print("occupied", flush=True)
        time.sleep(3600)
    return round_nearest(*args)

nearest.round_nearest = occupied
sys.exit(main(sys.argv[1:]))
"""


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("old", [None, b"old"])
def test_one_long_operation_does_not_delay_the_end(number: signal.Signals, old: bytes | None, slow_path: Path) -> None:
    target = slow_path.with_name("q.safetensors")
    if old is not None:
        target.write_bytes(old)
    command = [sys.executable, "-c", OCCUPIED, "-i", slow_path, "-o", target, "--format", "int8_row", "--overwrite"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "occupied\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert out == ""
    assert [line for line in err.splitlines() if "%" not in line] == ["error: Stopped on request; nothing was written."]
    assert sorted(os.listdir(slow_path.parent)) == sorted([slow_path.name, *([target.name] if old else [])])
    assert old is None or target.read_bytes() == old


IMPORTING = """
import time
print("importing", flush=True)
try:
    time.sleep(3600)
except BaseException:
    pass
"""


def script_of_the_package() -> str:
    """What the installed command runs."""
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    module, function = re.findall(r'^calibrated-rounding = "(.+):(.+)"$', project, re.MULTILINE)[0]
    return f"import sys; from {module} import {function}; sys.exit({function}())"


@posix
@pytest.mark.parametrize("start", ["module", "checkout", "script"])
def test_interrupt_while_importing_is_one_line(start: str, tmp_path: Path) -> None:
    """Libraries may swallow KeyboardInterrupt while they are imported."""
    (tmp_path / "torch.py").write_text(IMPORTING)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])}
    checkout = [sys.executable, "-m", "quant"]
    command = {"module": COMMAND, "checkout": checkout, "script": [sys.executable, "-c", script_of_the_package()]}[
        start
    ]
    process = subprocess.Popen(
        [*command, "-i", "model.safetensors"],
        cwd=Path(__file__).parents[3],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (130, "error: Interrupted.\n")


def test_published_file_is_not_abandoned(tmp_path: Path) -> None:
    before = StagedFile.count_published
    write_text(tmp_path / "first", "1")
    staged = StagedFile(tmp_path / "second", 1)
    staged.create()
    with abandon_unfinished(before) as nothing_written:
        assert not nothing_written
    assert len(os.listdir(tmp_path)) == 2
    with abandon_unfinished(StagedFile.count_published) as nothing_written:
        assert nothing_written
    assert os.listdir(tmp_path) == ["first"]
    staged.discard()


@posix
def test_second_thread_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    before, ended = threading.active_count(), list[int]()
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.0)
    with signals.watch_signals([signal.SIGTERM], ended.append):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert ended == []
    assert signal.set_wakeup_fd(-1) == -1


@posix
def test_closed_pipe_is_no_error(digits_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "inspect", digits_path, "--json"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE


def test_module_returns_exit_code(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "-i", tmp_path / "none"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'none'} does not exist.\n"


@posix
def test_the_first_signal_asks_and_the_second_interrupts() -> None:
    with stop_on_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@posix
def test_handlers_are_restored_after_run() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert getattr(signal.getsignal(signal.SIGINT), "__func__", None) is Stop.receive
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)
