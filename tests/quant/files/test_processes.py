"""What only a process of its own can show: sudden death, limits set by the system, and the memory taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.files import CheckpointWriter
from calibrated_rounding.quant.files.staging import remove_stale

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals, limits and /proc of Linux")

PRELUDE = """
import os, resource, signal, sys, torch
from calibrated_rounding.quant.files import CheckpointWriter, open_checkpoint
from calibrated_rounding.quant.errors import CheckpointError
path = sys.argv[1]
"""


def run(script: str, path: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PRELUDE + script, str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


DIE_IN_THE_MIDDLE = """
with CheckpointWriter(path, {"a": (torch.uint8, (100,)), "b": (torch.uint8, (100,))}, {}) as writer:
    writer.write("a", torch.ones(100, dtype=torch.uint8))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_run_is_cleaned_up_by_next(tmp_path):
    path = tmp_path / "model [1].safetensors"
    path.write_bytes(b"older file")
    assert run(DIE_IN_THE_MIDDLE, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"older file"
    assert len(os.listdir(tmp_path)) == 2, "a killed process cannot clean up"
    remove_stale(tmp_path / "model [1].safetensors.2")
    assert len(os.listdir(tmp_path)) == 2, "the leftover belongs to another target"
    with CheckpointWriter(path, {"a": (torch.uint8, (1,))}, {}):
        assert len(os.listdir(tmp_path)) == 2, "the leftover is gone before new room is taken"
    assert os.listdir(tmp_path) == [path.name]


LIMITED = """
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with CheckpointWriter(path, {"a": (torch.uint8, (20_000,))}, {}):
        print("the work began")
except CheckpointError as error:
    print(error)
"""


def test_file_size_limit_is_found_first(tmp_path):
    path = tmp_path / "m"
    output = run(LIMITED, path).stdout
    assert output.startswith(str(path))
    assert "larger than" in output
    assert output.count("\n") == 1
    assert os.listdir(tmp_path) == []


COPY = """
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
layout = {str(n): (torch.uint8, (8 << 20,)) for n in range(24)}
torch.ones(8 << 20, dtype=torch.uint8).cpu()
before = peak()
with CheckpointWriter(path, layout, {}) as writer:
    for name in layout:
        writer.write(name, torch.ones(8 << 20, dtype=torch.uint8))
    writer.commit()
with open_checkpoint(path) as source, CheckpointWriter(path, layout, {}) as writer:
    for number, name in enumerate(source.tensors):
        if number % 2:
            writer.write(name, source.read(name))
        else:
            writer.write_chunks(name, source.chunks(name, 1 << 20))
    source.sha256()
    writer.commit()
print(peak() - before)
"""


def test_a_large_file_is_never_in_memory(tmp_path):
    result = run(COPY, tmp_path / "m")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "m").stat().st_size > 192 * 2**20
    assert int(result.stdout) < 64, "MiB of growth while 192 MiB were written, read and copied"
