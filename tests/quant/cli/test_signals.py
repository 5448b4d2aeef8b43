"""What only a process of its own can show: signals in the middle of a run, and a reader that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.cli.signals import Stop, stop_on_signals
from safetensors.torch import save_file

COMMAND = [sys.executable, "-m", "calibrated_rounding.quant"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal, here and in child processes: a shell starts its background jobs with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


@posix
def test_a_reader_that_goes_away_is_no_error(digits_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "inspect", digits_path, "--json"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE


def test_the_module_gives_the_exit_code_to_the_shell(tmp_path: Path) -> None:
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
def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert getattr(signal.getsignal(signal.SIGINT), "__func__", None) is Stop.receive
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)
