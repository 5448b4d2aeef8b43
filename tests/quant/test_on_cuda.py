"""The engine on a pretend CUDA device: the CPU's bytes, nothing mixed, and bounds of what it costs.

A real GPU adds in another order, so its learned codes and its errors may differ from the CPU's in single places; what
is shown here is that the same operations run, on one device.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import (
    InputStatistics,
    LayerError,
    Recipe,
    SvdSettings,
    quantize_file,
    quantize_state_dict,
)
from calibrated_rounding.quant import quantize_tensor as quantize_one
from calibrated_rounding.quant.calibration.recorder import Recorder
from calibrated_rounding.quant.calibration.sensitivity import Perturbation, measure_sensitivities
from calibrated_rounding.quant.files.dequantized import as_float
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.layer.memory import peak_bytes
from calibrated_rounding.tests.pretend.cuda import PretendCuda
from calibrated_rounding.tests.pretend.tensor import DEVICE
from safetensors.torch import save_file

Tensors = Mapping[str, torch.Tensor]
LAYER = "blocks.0.proj"
SHAPE = (128, 128)
PLAIN = ("float8_e4m3fn", "int8_tensor", "int8_row", "int8_convrot", "mxfp8", "int8_blockwise")
GROUPED = ("w6a8", "w4a8", "nvfp4")
ROUNDINGS = {
    "nearest": Recipe(profile="generic"),
    "svd": Recipe(profile="generic", rounding="svd", svd=SvdSettings(iterations=2, metric="inputs")),
    "svd by AdamW": Recipe(profile="generic", rounding="svd", svd=SvdSettings(iterations=2, optimizer="adamw")),
    "svd by feedback": Recipe(profile="generic", rounding="svd", svd=SvdSettings(optimizer="feedback")),
    "calibrated": Recipe(profile="generic", rounding="calibrated", bias_correction="measured"),
}


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def tensors() -> Tensors:
    bias = draw(SHAPE[0], seed=2, dtype=torch.bfloat16)
    return {f"{LAYER}.weight": draw(*SHAPE, seed=1, dtype=torch.bfloat16), f"{LAYER}.bias": bias}


@pytest.fixture
def statistics() -> Mapping[str, InputStatistics]:
    rows = draw(96, SHAPE[1], seed=3)
    return {LAYER: InputStatistics(rows=rows, mean=rows.mean(dim=0), absmax=float(rows.abs().amax()))}


def move(tensors: Tensors, device: torch.device | str) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def assert_same_bytes(tensors: Tensors, reference: Tensors) -> None:
    assert tensors.keys() == reference.keys()
    for name, tensor in move(tensors, "cpu").items():
        assert (tensor.dtype, tensor.shape) == (reference[name].dtype, reference[name].shape), name
        first, second = (x.contiguous().reshape(-1).view(torch.uint8) for x in (tensor, reference[name]))
        assert torch.equal(first, second), name


def recipe_of(rounding: str, fmt: str) -> Recipe:
    return Recipe.from_dict(ROUNDINGS[rounding].to_dict() | {"format": fmt})


@pytest.mark.parametrize("fmt", [*FORMATS, "auto"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_device_gives_cpu_bytes(
    fmt: str, rounding: str, tensors: Tensors, statistics: Mapping[str, InputStatistics]
) -> None:
    recipe = recipe_of(rounding, fmt)
    reference, report = quantize_state_dict(tensors, recipe, statistics=statistics, force=True)
    with PretendCuda() as cuda:
        source = move(tensors, DEVICE)
        result, on_device = quantize_state_dict(source, recipe, statistics=statistics, force=True)
        assert result[f"{LAYER}.weight"].is_cuda
        assert_same_bytes(result, reference)
    assert [layer.notes for layer in on_device.layers] == [layer.notes for layer in report.layers]
    used = FORMATS.get(fmt, FORMATS["int8_row"])
    assert cuda.ledger.memory.peak <= peak_bytes(SHAPE, recipe, statistics[LAYER], used), cuda.ledger


@pytest.mark.parametrize("fmt", [*FORMATS, "auto"])
def test_file_on_device_has_cpu_bytes(fmt: str, tensors: Tensors, tmp_path: Path) -> None:
    save_file(dict(tensors), tmp_path / "source.safetensors")
    recipe = Recipe(format=fmt, profile="generic")
    quantize_file(tmp_path / "source.safetensors", tmp_path / "cpu.safetensors", recipe, force=True)
    with PretendCuda():
        quantize_file(
            tmp_path / "source.safetensors", tmp_path / "cuda.safetensors", recipe, device="cuda:0", force=True
        )
    assert (tmp_path / "cuda.safetensors").read_bytes() == (tmp_path / "cpu.safetensors").read_bytes()


@pytest.mark.parametrize("place", ["cpu", "cuda:0"])
@pytest.mark.parametrize("fmt", PLAIN)
def test_nearest_waits_three_times_a_layer(fmt: str, place: str) -> None:
    count = 4
    weights = {f"blocks.{i}.proj.weight": draw(*SHAPE, seed=i, dtype=torch.bfloat16) for i in range(count)}
    with PretendCuda() as cuda:
        source = move(weights, place)
        quantize_state_dict(source, Recipe(format=fmt, profile="generic"), device="cuda:0", force=True)
    assert cuda.ledger.wait_count <= 3 * count, cuda.ledger
    assert cuda.ledger.launches <= 70 * count, cuda.ledger


@pytest.mark.parametrize("fmt", GROUPED)
def test_grouped_nearest_waits_little(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks of rows there are."""
    recipe = Recipe(format=fmt, profile="generic")
    weight = draw(512, 256, seed=0, dtype=torch.bfloat16)
    reference, _ = quantize_state_dict({f"{LAYER}.weight": weight}, recipe, force=True)
    monkeypatch.setattr("calibrated_rounding.quant.layer.operands.BLOCK_ELEMENTS", 1 << 14)
    with PretendCuda() as cuda:
        source = {f"{LAYER}.weight": weight.to(DEVICE)}
        before = cuda.ledger.wait_count
        result, _ = quantize_state_dict(source, recipe, force=True)
        assert cuda.ledger.wait_count - before <= 6, cuda.ledger
        # Codes and scales of all rows, float32 values of a block, and what decides about a codebook.
        most = 3 * weight.nbytes + 4 * 16 * (1 << 14) + (16 * weight.numel() if fmt == "w4a8" else 0)
        assert cuda.ledger.memory.peak <= most, cuda.ledger
        assert_same_bytes(result, reference)


def test_tall_layers_wait_no_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of a layer is read back at once, however many there are."""
    monkeypatch.setattr("calibrated_rounding.quant.layer.operands.BLOCK_ELEMENTS", 1 << 12)
    weight = {f"{LAYER}.weight": draw(512, 128, seed=0)}
    for fmt in ("float8_e4m3fn", "int8_row"):
        with PretendCuda() as cuda:
            quantize_state_dict(move(weight, DEVICE), Recipe(format=fmt, profile="generic"), force=True)
        assert cuda.ledger.wait_count <= 3, cuda.ledger


@pytest.mark.parametrize(("rounding", "waits"), [("svd", 40), ("svd by AdamW", 40), ("calibrated", 60)])
def test_learned_rounding_waits_within_bounds(
    rounding: str, waits: int, tensors: Tensors, statistics: Mapping[str, InputStatistics]
) -> None:
    with PretendCuda() as cuda:
        recipe = recipe_of(rounding, "int8_row")
        quantize_state_dict(move(tensors, DEVICE), recipe, statistics=statistics, force=True)
    assert cuda.ledger.wait_count <= waits, cuda.ledger


@pytest.mark.parametrize("fmt", GROUPED)
def test_calibrated_groups_wait_no_more_in_wide_layers(fmt: str) -> None:
    """Neither LDLQ nor its passes wait for each group."""
    waits = []
    for width in (128, 512):
        rows = draw(96, width, seed=3)
        stats = {LAYER: InputStatistics(rows=rows, mean=rows.mean(dim=0), absmax=float(rows.abs().amax()))}
        with PretendCuda() as cuda:
            source = {f"{LAYER}.weight": draw(64, width, seed=1).to(DEVICE)}
            before = cuda.ledger.wait_count
            recipe = Recipe(format=fmt, profile="generic", rounding="calibrated")
            quantize_state_dict(source, recipe, statistics=stats, force=True)
            waits.append(cuda.ledger.wait_count - before)
    assert waits[1] <= waits[0] + 4, cuda.ledger
    assert waits[0] <= 60, cuda.ledger


def test_one_tensor_is_computed_where_it_is(tensors: Tensors) -> None:
    weight = tensors[f"{LAYER}.weight"]
    reference, floats = quantize_one(weight, Recipe(format="int8_row", profile="generic"))
    with PretendCuda() as cuda:
        on_device = weight.to(DEVICE)
        result, dequantized = quantize_one(on_device, Recipe(format="int8_row", profile="generic"))
        assert dequantized.is_cuda
        assert cuda.ledger.bytes_down < weight.numel(), cuda.ledger
        assert_same_bytes(result, reference)
        assert torch.equal(dequantized.cpu(), floats)


@pytest.mark.parametrize("fmt", FORMATS)
def test_dequantizing_on_device_gives_cpu_bytes(fmt: str, tensors: Tensors) -> None:
    quantized, _ = quantize_state_dict(tensors, Recipe(format=fmt, profile="generic"), force=True)
    reference = as_float(StateDictSource(quantized), dequantize=True).read(f"{LAYER}.weight")
    with PretendCuda():
        floats = as_float(StateDictSource(move(quantized, DEVICE)), dequantize=True).read(f"{LAYER}.weight")
        assert floats.is_cuda
        assert torch.equal(floats.cpu(), reference)


class Model(torch.nn.Module):
    """Two layers and a nonlinearity, on the device of their weights."""

    def __init__(self, device: torch.device | str) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Linear(64, 64, bias=False) for _ in range(2))
        for seed, layer in enumerate((self.first, self.second)):
            weight = draw(64, 64, seed=seed).to(device)
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def record(device: torch.device | str) -> tuple[Mapping[str, InputStatistics], dict[str, float]]:
    """A calibration of six calls, and the layers' sensitivities."""
    model, recorder = Model(device), Recorder(rows=32)
    with torch.no_grad():
        with recorder.watch(model):
            for seed in range(6):
                model(draw(20, 64, seed=seed).to(device))

        def run(perturbation: Perturbation | None) -> torch.Tensor:
            with nullcontext() if perturbation is None else perturbation.apply(model):
                return model(draw(20, 64, seed=9).to(device))

        return recorder.calibration(), measure_sensitivities(["first", "second"], run)


def test_recording_on_device_gives_cpu_values() -> None:
    reference, sensitivities = record("cpu")
    with PretendCuda() as cuda:
        calibration, on_device = record(DEVICE)
    assert on_device == sensitivities
    assert calibration.keys() == reference.keys() == {"first", "second"}
    for layer, inputs in reference.items():
        assert inputs.rows is not None and calibration[layer].rows is not None
        assert torch.equal(calibration[layer].rows, inputs.rows)
        assert torch.equal(calibration[layer].mean, inputs.mean)
        assert calibration[layer].fingerprint == inputs.fingerprint
    assert cuda.ledger.wait_count <= 40, cuda.ledger


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "int8_row", "int8_convrot", *GROUPED])
def test_damaged_weights_are_named_on_device(fmt: str, value: float, tensors: Tensors) -> None:
    with PretendCuda():
        damaged = move(tensors, DEVICE)
        damaged[f"{LAYER}.weight"][5, 7] = value
        with pytest.raises(LayerError, match=f"Layer '{LAYER}' holds NaN or infinite weights"):
            quantize_state_dict(damaged, Recipe(format=fmt, profile="generic"), force=True)


def test_layer_without_room_is_computed_on_cpu(tensors: Tensors) -> None:
    with PretendCuda(memory=1 << 20):
        result, report = quantize_state_dict(move(tensors, DEVICE), Recipe(profile="generic"), force=True)
        assert result[f"{LAYER}.weight"].is_cuda
    assert "computed_on_cpu" in [note.kind for note in report.layers[0].notes]


def test_mixed_devices_raise() -> None:
    with PretendCuda():
        on_device = torch.ones(2, device="cuda:0")
        with pytest.raises(RuntimeError, match="on the same device"):
            on_device + torch.ones(2)
        assert (on_device + torch.tensor(1.0)).tolist() == [2.0, 2.0]
        with pytest.raises(NotImplementedError, match="FP8"):
            torch.cat([on_device.to(torch.float8_e4m3fn)] * 2)


def test_two_devices_do_not_mix() -> None:
    with PretendCuda(count=2):
        first, second = (torch.ones(2, device=f"cuda:{index}") for index in range(2))
        with pytest.raises(RuntimeError, match="same device, but found cuda:0 and cuda:1"):
            first + second
        assert (first.to("cuda:1") + second).device == torch.device("cuda:1")
        first.copy_(second + 1)
        assert first.tolist() == [2.0, 2.0]
        assert first.device == torch.device("cuda:0")
