from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


def run(folder: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """Run the benchmark without a GPU; returns its output and its JSON."""
    written = folder / "kernels.json"
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--json", written, *options],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout, json.loads(written.read_text())


def test_nothing_is_measured_without_gpu(tmp_path: Path) -> None:
    printed, document = run(tmp_path, "--models", "WAN 14B", "--rows", "1", "4608")
    assert printed.startswith("not measured: no CUDA device\n")
    assert [row["case"] for row in document["rows"]][-1] == "WAN 14B ffn out 5120x13824, M 4608"
    assert len(document["rows"]) == 6
    assert all(row["value"] is None and row["unit"] == "not measured: no CUDA device" for row in document["rows"])


def test_host_time_is_measured_without_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    _, document = run(tmp_path, "--host", "--rounds", "1")
    values = {row["metric"]: row["value"] for row in document["rows"]}
    assert 0 < values["plain linear layer of 1 x 1"] < values["its custom op alone"]
    assert [row["target"] for row in document["rows"] if row["metric"] == "linear layer, block-wise"] == [80.0]


def test_smoke_run_compares_every_output(tmp_path: Path) -> None:
    _, document = run(tmp_path, "--smoke", "--rounds", "1")
    errors = {row["metric"]: row["reached"] for row in document["rows"] if row["metric"].endswith("error")}
    assert all(errors.values())
    assert {"bf16 linear, error", "ours, row, error", "ours, block 128, error", "comfy-kitchen eager, error"} <= set(
        errors
    )


def test_layers_without_room_are_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 16 GB: the product of a video and Flux.2's widest layer alone takes more."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("benchmark_of_kernels", BENCHMARK)
    assert spec is not None and spec.loader is not None
    kernels = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, kernels)
    spec.loader.exec_module(kernels)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (16 << 30, 16 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    (row,) = kernels.measure({"Flux.2 linear1": (55_296, 6144)}, [32_760], 1, "cuda")
    assert row.case == "Flux.2 linear1 55296x6144, M 32760" and row.value is None
    assert row.unit == "not measured: 27.2 GiB are not free"
    assert kernels.peak_bytes(4608, 55_296, 6144) < 16 << 30
