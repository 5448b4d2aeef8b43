"""Several devices in one process, on two pretend CUDA devices: the bytes of one device, and both at work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Cancelled, InputStatistics, LayerError, Progress, Recipe, quantize_file
from calibrated_rounding.quant import execution as execution_module
from calibrated_rounding.quant.engine import quantize
from calibrated_rounding.quant.files.sinks import StateDictSink
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.planning import candidates as candidates_module
from calibrated_rounding.quant.run import Run
from calibrated_rounding.quant.workers.devices import spread
from calibrated_rounding.quant.workers.workers import Workers
from calibrated_rounding.tests.pretend.cuda import PretendCuda
from safetensors.torch import save_file

GPUS = ("cuda:0", "cuda:1")
ROUNDINGS = {
    "nearest": Recipe(profile="generic"),
    "svd": Recipe(profile="generic", rounding="svd"),
    "calibrated": Recipe(profile="generic", rounding="calibrated", bias_correction="measured"),
}


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Five layers of growing size, with biases, and a norm."""
    layers = {f"blocks.{i}.proj.weight": draw(32 * (i + 1), 64, seed=i).bfloat16() for i in range(5)}
    biases = {f"blocks.{i}.proj.bias": draw(32 * (i + 1), seed=i + 9).bfloat16() for i in range(5)}
    return layers | biases | {"norm.weight": torch.ones(8)}


@pytest.fixture
def source(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file(tensors, tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


@pytest.fixture
def statistics() -> Mapping[str, InputStatistics]:
    rows = [draw(64, 64, seed=i + 20) for i in range(5)]
    return {
        f"blocks.{i}.proj": InputStatistics(rows=r, mean=r.mean(dim=0), absmax=float(r.abs().amax()))
        for i, r in enumerate(rows)
    }


class Meeting:
    """Notes each layer's device; the first layers of both devices wait for each other."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.layers = list[tuple[str, str]]()
        self._function, self._barrier = function, threading.Barrier(2)

    def __call__(self, task: Any) -> Any:
        first = task.device not in [device for _, device in self.layers]
        self.layers.append((task.name, task.device))
        if first:
            self._barrier.wait(timeout=300)
        return self._function(task)


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Meeting]:
    def install(module: Any) -> Meeting:
        meeting = Meeting(module.quantize_layer)
        monkeypatch.setattr(module, "quantize_layer", meeting)
        return meeting

    return install


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "int8_convrot", "w4a8", "auto"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_two_devices_write_the_bytes_of_one(
    fmt: str, rounding: str, source: Path, statistics: Mapping[str, InputStatistics], meet: Callable[[Any], Meeting]
) -> None:
    recipe = Recipe.from_dict(ROUNDINGS[rounding].to_dict() | {"format": fmt})
    targets = [source.with_name(f"{name}.safetensors") for name in ("one", "two")]
    with PretendCuda(count=2):
        one = quantize_file(source, targets[0], recipe, device="cuda:0", statistics=statistics, force=True)
        meetings = [meet(execution_module), *([meet(candidates_module)] if fmt == "auto" else [])]
        two = quantize_file(source, targets[1], recipe, device=GPUS, statistics=statistics, force=True)
    assert all({device for _, device in meeting.layers} == set(GPUS) for meeting in meetings)
    assert targets[1].read_bytes() == targets[0].read_bytes()
    assert [layer.name for layer in two.layers] == [layer.name for layer in one.layers]
    assert [kept.name for kept in two.kept] == [kept.name for kept in one.kept]


def test_loaded_model_goes_longest_layer_first(
    tensors: dict[str, torch.Tensor], meet: Callable[[Any], Meeting]
) -> None:
    sinks, seen = [StateDictSink() for _ in range(2)], list[Progress]()
    with PretendCuda(count=2):
        quantize(StateDictSource(tensors), sinks[0], Run(recipe=ROUNDINGS["nearest"], force=True))
        meeting = meet(execution_module)
        run = Run(recipe=ROUNDINGS["nearest"], workers=Workers(GPUS), on_progress=seen.append, force=True)
        report = quantize(StateDictSource(tensors), sinks[1], run)
    assert {name for name, _ in meeting.layers[:2]} == {"blocks.4.proj", "blocks.3.proj"}
    assert [layer.name for layer in report.layers] == [f"blocks.{i}.proj" for i in range(5)]
    assert [progress.done for progress in seen] == list(range(6))
    assert sorted(progress.last.name for progress in seen if progress.last) == sorted(n for n, _ in meeting.layers)
    assert seen[-1].fraction == 1.0
    assert all(torch.equal(tensor.cpu(), sinks[0].tensors[name].cpu()) for name, tensor in sinks[1].tensors.items())


def test_damaged_layer_ends_both_devices(tensors: dict[str, torch.Tensor], source: Path) -> None:
    tensors["blocks.3.proj.weight"][0, 0] = torch.nan
    save_file(tensors, source)
    before = threading.active_count()
    with PretendCuda(count=2), pytest.raises(LayerError, match=r"Layer 'blocks\.3\.proj' holds NaN"):
        quantize_file(source, source.with_name("t.safetensors"), ROUNDINGS["nearest"], device=GPUS, force=True)
    assert os.listdir(source.parent) == [source.name]
    assert threading.active_count() == before


def test_interrupt_ends_both_devices(source: Path) -> None:
    before, seen = threading.active_count(), list[Progress]()
    with PretendCuda(count=2), pytest.raises(Cancelled):
        quantize_file(
            source,
            source.with_name("t.safetensors"),
            ROUNDINGS["nearest"],
            device=GPUS,
            force=True,
            progress=seen.append,
            cancel=lambda: len(seen) > 2,
        )
    assert os.listdir(source.parent) == [source.name]
    assert threading.active_count() == before


def test_no_device_holds_more_than_one_job() -> None:
    taken, finished = list[int](), list[int]()

    def jobs() -> Any:
        for job in range(20):
            assert len(taken) - len(finished) <= 2
            taken.append(job)
            yield job

    for result in spread(jobs(), ("cpu", "cpu"), lambda job, device: job, lambda: None):
        finished.append(result)
    assert sorted(finished) == list(range(20))
