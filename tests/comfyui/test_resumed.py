"""A quantization that is interrupted in ComfyUI and queued again goes on from its finished layers."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.tools.comfyui import Server
from calibrated_rounding.tools.comfyui.graphs import model_loader, pack_node, quantize_inputs, svd_inputs
from calibrated_rounding.tools.comfyui.workflows import table
from safetensors.torch import load_file

LEARNED = svd_inputs("adamw", iterations=300, learning_rate=0.0)
GRAPH = {
    "model": model_loader("digits_wan.safetensors"),
    "quantize": pack_node("QuantizeModel", model=["model", 0], **quantize_inputs(device="cpu", **LEARNED)),
    "save": pack_node("SaveModel", model=["quantize", 0], filename_prefix="diffusion_models/resumed"),
}
FEW = 3
"""Layers after which the first run is interrupted."""

Seconds = dict[str, float]
"""Name of a layer -> how long its rounding took; a layer that is rounded again takes another time."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """An interrupted run, the run after it, and a run from the beginning."""

    interrupted: Seconds
    waiting: list[str]
    """Files of finished layers after the interrupt."""
    resumed: Seconds
    left: list[str]
    """Files of finished layers after the second run."""
    complete: Seconds
    files: tuple[Path, Path]
    """What the second and the third run saved."""


@pytest.fixture(scope="module")
def runs(server: Server) -> Runs:
    kept = server.base / "user" / "calibrated_rounding"
    assert list_files(kept / "layers") == []
    interrupted = interrupt_run(server, kept / "layers")
    waiting = list_files(kept / "layers")
    resumed, second = run_again(server)
    left = list_files(kept / "layers")
    shutil.rmtree(kept / "cache")
    server.post("/free", {"unload_models": True, "free_memory": True})
    complete, third = run_again(server)
    files = (second, third)
    return Runs(interrupted=interrupted, waiting=waiting, resumed=resumed, left=left, complete=complete, files=files)


def interrupt_run(server: Server, folder: Path) -> Seconds:
    prompt = server.queue(GRAPH)
    while len(list_files(folder)) < FEW:
        assert prompt not in server.get(f"/history/{prompt}"), "the run ended before it could be interrupted"
        time.sleep(0.02)
    server.interrupt()
    entry = server.wait(prompt)
    assert "execution_interrupted" in [message[0] for message in entry["status"]["messages"]]
    (run,) = (run for run in server.get("/calibrated_rounding/live") if run["node"] == "quantize")
    return seconds_of(run["layers"])


def run_again(server: Server) -> tuple[Seconds, Path]:
    outputs = server.execute(GRAPH)
    (report,) = outputs["quantize"]["calibrated_rounding"]
    assert not report["from_disk"]
    (saved,) = outputs["save"]["calibrated_rounding"][0]["files"]
    return seconds_of(report["layers"]), Path(saved["path"])


def seconds_of(layers: dict[str, Any]) -> Seconds:
    return {row["name"]: row["errors"]["seconds"] for row in table(layers)}


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_interrupt_keeps_finished_layers(runs: Runs) -> None:
    assert FEW - 1 <= len(runs.interrupted) <= len(runs.waiting) < len(runs.complete)


def test_next_run_skips_finished_layers(runs: Runs) -> None:
    finished = {name: runs.resumed[name] for name in runs.interrupted}
    assert finished == pytest.approx(runs.interrupted, rel=1e-6)
    assert runs.resumed.keys() == runs.complete.keys()
    again = {name: runs.complete[name] for name in runs.interrupted}
    assert again != pytest.approx(runs.interrupted, rel=1e-6), "rounding a layer again takes another time"


def test_finished_layers_go_with_the_end(runs: Runs) -> None:
    assert runs.left == []


def test_resumed_result_equals_uninterrupted_one(runs: Runs) -> None:
    resumed, complete = map(load_file, runs.files)
    assert resumed.keys() == complete.keys()
    assert all(torch.equal(resumed[name], complete[name]) for name in complete)
