"""Several processes on one file: the bytes of one process, and one sentence where something fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import InputStatistics, Recipe, SvdSettings, quantize_file
from calibrated_rounding.quant.cli import main
from calibrated_rounding.tests.quant.processes import ENVIRONMENT
from safetensors.torch import load_file, save_file

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.usefixtures("interruptible"),
]

PYTHON = sys.executable
QUANT = "calibrated_rounding.quant"
TORCHRUN = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SECONDS = 600
"""Of a run at most, on a machine that does much else."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A float model of eight layers of several shapes, with biases, and a norm."""
    generator, tensors = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for i in range(8):
        rows = 64 * (1 + i % 3)
        weight = torch.randn(rows, 128, generator=generator)
        tensors |= {f"blocks.{i}.proj.weight": weight, f"blocks.{i}.proj.bias": torch.randn(rows, generator=generator)}
    path = tmp_path / "source.safetensors"
    save_file({name: t.to(torch.bfloat16) for name, t in tensors.items()} | {"norm.weight": torch.ones(9)}, path)
    return path


def join(*processes: subprocess.Popen[str]) -> tuple[list[int], list[str]]:
    """The exit codes, and the lines of stderr that say an error."""
    texts = [process.communicate(timeout=SECONDS)[1] for process in processes]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("error: ")]
    return [process.returncode for process in processes], lines


def start(*command: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_ranks(*arguments: object, **environment: str) -> list[subprocess.Popen[str]]:
    """Two ranks without torchrun, whose agent also ends the others where one dies."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    return [start(PYTHON, *arguments, RANK=str(rank), **place, **environment) for rank in range(2)]


RECIPES = {
    "nearest": Recipe(format="int8_convrot"),
    "svd": Recipe(format="float8_e4m3fn", rounding="svd", svd=SvdSettings(iterations=3)),
    "calibrated": Recipe(format="int8_row", rounding="calibrated", bias_correction="measured"),
    "auto": Recipe(format="auto", rounding="calibrated", target_share=0.7),
    "upgrade": Recipe(format="float8_e4m3fn", max_error=0.02, upgrade="int8_row"),
    "rotation": Recipe(format="int8_convrot", rotation_group="auto"),
}

QUANTIZE_ALL = f"""
import sys
from pathlib import Path
from calibrated_rounding.tests.quant.workers.test_ranks import quantize_all
from {QUANT}.workers.ranks import join_ranks

with join_ranks() as ranks:
    quantize_all(Path(sys.argv[1]), Path(sys.argv[2]), ranks)
"""


def quantize_all(source: Path, folder: Path, ranks: object = None) -> None:
    """Quantize by every recipe; rank 0's report lies beside the file."""
    generator, statistics = torch.Generator().manual_seed(3), dict[str, InputStatistics]()
    for name in load_file(source):
        if name.startswith("blocks.") and name.endswith(".weight"):
            rows = torch.randn(64, 128, generator=generator) @ torch.randn(128, 128, generator=generator)
            layer = name.removesuffix(".weight")
            statistics[layer] = InputStatistics(rows=rows, mean=rows.mean(dim=0), absmax=float(rows.abs().amax()))
    for name, recipe in RECIPES.items():
        recipe = Recipe.from_dict(recipe.to_dict() | {"profile": "generic"})
        target = folder / f"{name}.safetensors"
        report = quantize_file(source, target, recipe, ranks=ranks, statistics=statistics, force=True)  # type: ignore[arg-type]
        if getattr(ranks, "rank", 0) == 0:
            target.with_suffix(".json").write_text(report.to_json())


def read_report(path: Path) -> object:
    """A report without its times."""
    report = json.loads(path.read_text())
    for entry in (report, *(layer["errors"] for layer in report["layers"])):
        entry["seconds"] = None
    return report


def test_ranks_write_the_bytes_of_one_process(source: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    ranks = start_ranks("-c", QUANTIZE_ALL, source, two)
    quantize_all(source, one)
    assert join(*ranks) == ([0, 0], [])
    assert sorted(os.listdir(two)) == sorted(os.listdir(one))
    for name in RECIPES:
        assert (two / f"{name}.safetensors").read_bytes() == (one / f"{name}.safetensors").read_bytes(), name
        assert read_report(two / f"{name}.json") == read_report(one / f"{name}.json"), name


def test_torchrun_and_devices_give_the_same_file(source: Path, tmp_path: Path) -> None:
    options = ["--format", "float8_e4m3fn", "--force"]
    files = {name: [tmp_path / f"{name}.safetensors", tmp_path / f"{name}.json"] for name in ("one", "run", "devices")}
    arguments = {name: ["-i", source, *options, "-o", file, "--report", r] for name, (file, r) in files.items()}
    run = start(*TORCHRUN, "-m", QUANT, *arguments["run"])
    out, err = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, err
    assert out.count("Next: ") == 1
    assert "100%" in err
    devices = start(PYTHON, "-m", QUANT, *arguments["devices"], "--devices", "cpu,cpu")
    assert join(devices) == ([0], [])
    assert main([str(part) for part in [*arguments["one"], "--device", "cpu"]]) == 0
    for file, report in files.values():
        assert file.read_bytes() == files["one"][0].read_bytes()
        assert read_report(report) == read_report(files["one"][1])


MISBEHAVE = f"""
import errno, os, signal, sys, time
from {QUANT}.cli import main
from {QUANT}.files import staging
from {QUANT}.layer import nearest

rank, deed = int(os.environ["RANK"]), os.environ["DEED"]
round_nearest, calls = nearest.round_nearest, []

def is_full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def misbehave(*arguments):
    calls.append(arguments)
    if len(calls) == 2 and deed == f"rank {{rank}} dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if len(calls) == 2 and deed == f"rank {{rank}} has a full disk":
        staging.os.write = is_full
    if len(calls) == 2 and deed == "wait":
        print("waiting", flush=True)
    time.sleep(0.3 if len(calls) < 2 else 1.0 if deed == "wait" else 0.1)
    return round_nearest(*arguments)

nearest.round_nearest = misbehave
sys.exit(main(sys.argv[1:]))
"""

DEEDS = {
    "rank 1 dies": "Rank 1 ended without a word: it was killed, its memory was exhausted, or its machine is gone; "
    "nothing was written.",
    "rank 0 dies": "Rank 0 ended without a word: it was killed, its memory was exhausted, or its machine is gone; "
    "nothing was written.",
    "rank 1 has a full disk": "Rank 1: {target} cannot be written: the disk is full; ",
}


@pytest.mark.parametrize("deed", DEEDS)
def test_failed_rank_stops_all_with_one_sentence(deed: str, source: Path) -> None:
    target = source.with_name("target.safetensors")
    arguments = ["-i", source, "-o", target, "--format", "int8_row", "--force", "--overwrite"]
    target.write_bytes(b"old")
    codes, errors = join(*start_ranks("-c", MISBEHAVE, *arguments, DEED=deed))
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: " + DEEDS[deed].format(target=target))
    dead = {"rank 1 dies": 1, "rank 0 dies": 0}.get(deed)
    assert codes == [-signal.SIGKILL if rank == dead else 1 for rank in range(2)]
    assert sorted(os.listdir(source.parent)) == [source.name, target.name]
    assert target.read_bytes() == b"old"


def test_torchrun_ends_killed_run_without_file(source: Path) -> None:
    script = source.with_name("script.py")
    script.write_text(MISBEHAVE)
    run = start(*TORCHRUN, script, "-i", source, "--format", "int8_row", "--force", DEED="rank 1 dies")
    codes, errors = join(run)
    assert codes == [1]
    assert errors == ["error: " + DEEDS["rank 1 dies"]]
    assert sorted(os.listdir(source.parent)) == [script.name, source.name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_all_leaves_nothing(number: signal.Signals, source: Path) -> None:
    ranks = start_ranks("-c", MISBEHAVE, "-i", source, "--format", "int8_row", "--force", DEED="wait")
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "waiting\n"
    for rank in ranks:
        rank.send_signal(number)
    codes, errors = join(*ranks)
    assert errors == ["error: Stopped on request; nothing was written."]
    assert codes[0] == 128 + number
    assert codes[1] != 0
    assert os.listdir(source.parent) == [source.name]


def test_users_error_is_reported_once(source: Path) -> None:
    tensors = load_file(source)
    tensors["blocks.5.proj.weight"][3, 4] = torch.nan
    save_file(tensors, source)
    run = start(PYTHON, "-m", QUANT, "-i", source, "--format", "int8_row", "--force", "--quiet", "--devices", "2")
    codes, errors = join(run)
    assert codes == [1]
    assert len(errors) == 1, errors
    assert "Layer 'blocks.5.proj' holds NaN or infinite weights" in errors[0]
    assert os.listdir(source.parent) == [source.name]


def test_missing_file_is_reported_once(tmp_path: Path) -> None:
    codes, errors = join(*start_ranks("-m", QUANT, "-i", tmp_path / "none.safetensors"))
    assert codes == [1, 1]
    assert errors == [f"error: {tmp_path / 'none.safetensors'} does not exist."]
