"""A device whose memory does not suffice for a layer: what is said, and what is left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import InputStatistics, LayerError, Recipe, SvdSettings
from calibrated_rounding.quant.api import quantize_file, quantize_state_dict
from calibrated_rounding.quant.files import Checkpoint
from calibrated_rounding.quant.layer import bias as bias_module
from calibrated_rounding.quant.layer import methods as methods_module
from calibrated_rounding.quant.layer import nearest as nearest_module
from calibrated_rounding.quant.layer.quantize import explain_failures
from calibrated_rounding.quant.rounding import calibrated as calibrated_module
from safetensors.torch import save_file

LAYERS = [f"layers.{i}" for i in range(4)]
THIRD = LAYERS[2]

FAILS: dict[str, tuple[Any, str, Recipe]] = {
    "nearest": (nearest_module, "round_nearest", Recipe(format="float8_e4m3fn")),
    "svd": (
        methods_module,
        "round_svd",
        Recipe(format="float8_e4m3fn", rounding="svd", svd=SvdSettings(optimizer="feedback")),
    ),
    "calibrated": (calibrated_module, "round_by_ldlq", Recipe(format="int8_row", rounding="calibrated")),
    "the best scale": (
        calibrated_module,
        "round_by_ldlq",
        Recipe(format="int8_row", rounding="calibrated", scale="auto"),
    ),
    "bias": (bias_module, "correct", Recipe(format="int8_row", bias_correction="measured")),
}
"""What runs out of memory at the third layer: a function of a module, and the recipe that calls it."""
CALLS = {"the best scale": 2}
"""How often the function is called for a layer, if not once."""


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    weights = {f"{layer}.weight": torch.randn(32, 48).bfloat16() for layer in LAYERS}
    return weights | {f"{layer}.bias": torch.randn(32).bfloat16() for layer in LAYERS}


@pytest.fixture
def statistics() -> dict[str, InputStatistics]:
    rows = torch.randn(256, 48) @ torch.randn(48, 48)
    known = InputStatistics(mean=rows.mean(0), absmax=float(rows.abs().max()), rows=rows.bfloat16(), count=len(rows))
    return dict.fromkeys(LAYERS, known)


@pytest.fixture(params=FAILS)
def recipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose third layer does not fit."""
    module, name, recipe = FAILS[request.param]
    number = 2 * CALLS.get(request.param, 1) + 1
    monkeypatch.setattr(module, name, fails_at(number, getattr(module, name), FAILURES[0]))
    return recipe


FAILURES = (
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError(),
)


def fails_at(number: int, function: Callable[..., Any], failure: Exception) -> Callable[..., Any]:
    calls = iter(range(1, 1000))

    def call(*args: Any, **settings: Any) -> Any:
        if next(calls) == number:
            raise failure
        return function(*args, **settings)

    return call


SENTENCE = (
    rf"^Layer '{re.escape(THIRD)}' \(32 x 48\) does not fit in the memory of cpu; close other programs, or "
    r"(quantize with rounding 'nearest'|keep it with exclude)\.$"
)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_every_kind_of_exhausted_memory_names_the_layer(
    failure: Exception, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest_module, "round_nearest", fails_at(3, nearest_module.round_nearest, failure))
    with pytest.raises(LayerError, match=SENTENCE):
        quantize_state_dict(tensors, Recipe(format="int8_row"))


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_exhausted_memory_while_reading_names_the_layer(
    failure: Exception, tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tensors, tmp_path / "source.safetensors")
    monkeypatch.setattr(Checkpoint, "read", fails_at(1, Checkpoint.read, failure))
    with pytest.raises(LayerError, match=r"^Layer '.*' \(.*\) does not fit in the memory of cpu; close other programs"):
        quantize_file(tmp_path / "source.safetensors", tmp_path / "made.safetensors", Recipe(format="int8_row"))
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


@pytest.mark.parametrize("rounding", ["nearest", "calibrated"])
def test_advice_on_exhausted_memory_fits_the_device(rounding: str) -> None:
    def explain(device: str) -> str:
        with pytest.raises(LayerError) as caught, explain_failures("a", (8, 16), device, rounding):
            raise MemoryError
        return str(caught.value)

    start = "Layer 'a' (8 x 16) does not fit in the memory of"
    second = "keep it with exclude" if rounding == "nearest" else "quantize with rounding 'nearest'"
    assert explain("cpu") == f"{start} cpu; close other programs, or {second}."
    assert explain("cuda:1") == f"{start} cuda:1; quantize on the CPU, or {second}."


def test_other_runtime_errors_are_not_memory_errors(
    tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        nearest_module, "round_nearest", fails_at(1, nearest_module.round_nearest, RuntimeError("else"))
    )
    with pytest.raises(RuntimeError, match="else"):
        quantize_state_dict(tensors, Recipe(format="int8_row"))


def test_failed_run_writes_nothing(
    tensors: dict[str, torch.Tensor], statistics: dict[str, InputStatistics], recipe: Recipe, tmp_path: Path
) -> None:
    source = tmp_path / "source.safetensors"
    save_file(tensors, source)
    before = source.read_bytes()
    with pytest.raises(LayerError, match=SENTENCE):
        quantize_file(source, tmp_path / "made.safetensors", recipe, statistics=statistics)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    assert source.read_bytes() == before


def test_an_older_target_stays(
    tensors: dict[str, torch.Tensor], statistics: dict[str, InputStatistics], recipe: Recipe, tmp_path: Path
) -> None:
    source, target = tmp_path / "source.safetensors", tmp_path / "made.safetensors"
    save_file(tensors, source)
    target.write_bytes(b"older")
    with pytest.raises(LayerError, match=SENTENCE):
        quantize_file(source, target, recipe, statistics=statistics)
    assert target.read_bytes() == b"older"


def test_failed_run_leaves_tensors_unchanged(
    tensors: dict[str, torch.Tensor], statistics: dict[str, InputStatistics], recipe: Recipe
) -> None:
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with pytest.raises(LayerError, match=SENTENCE):
        quantize_state_dict(tensors, recipe, statistics=statistics)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
    _, report = quantize_state_dict(tensors, recipe, statistics=statistics)
    assert [layer.name for layer in report.layers] == LAYERS
