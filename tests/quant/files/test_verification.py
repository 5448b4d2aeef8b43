"""A file is checked against its plan and ComfyUI's rules from its own bytes, before it appears."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import CheckpointError, InputStatistics, Recipe, quantize_file, quantize_state_dict
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.files.verification import verify_layers, verify_planned
from calibrated_rounding.quant.files.writer import CheckpointWriter
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.marker import HEADER_KEY, SUFFIX, Marker
from calibrated_rounding.quant.planning.builder import make_plan
from calibrated_rounding.quant.planning.plan import Plan
from calibrated_rounding.quant.reports import provenance

Tensors = dict[str, torch.Tensor]
LAYER = "blocks.1.ffn.0"
STATISTICS = {LAYER: InputStatistics(absmax=3.0)}


def result(digits: Tensors, name: str) -> tuple[Tensors, Plan]:
    """Quantized tensors in memory, and their plan."""
    recipe = Recipe(format=name, input_scale="absmax")
    tensors, _ = quantize_state_dict(digits, recipe, statistics=STATISTICS)
    return tensors, make_plan(StateDictSource(digits).tensors, recipe, STATISTICS)


def problem(tensors: Tensors, plan: Plan, metadata: dict[str, str] | None = None) -> str:
    """What the verification says; empty: nothing."""
    try:
        verify_planned(StateDictSource(tensors, metadata), plan.layout, plan.markers)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FORMATS)
def test_planned_file_passes(digits: Tensors, name: str) -> None:
    assert problem(*result(digits, name)) == ""


def marker(**fields: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


def scale_with(value: float) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        scale = tensors[f"{LAYER}.weight_scale"].clone()
        scale.view(-1)[-1] = value
        return tensors | {f"{LAYER}.weight_scale": scale}

    return change


def without(suffix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t for name, t in tensors.items() if name != f"{LAYER}.{suffix}"}


def replaced(suffix: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {f"{LAYER}.{suffix}": tensor}


BROKEN: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "a scale of zero": ("int8_row", scale_with(0.0), "weight_scale"),
    "a negative scale": ("int8_row", scale_with(-1.0), "weight_scale"),
    "an infinite scale": ("float8_e4m3fn", scale_with(torch.inf), "weight_scale"),
    "a scale of NaN": ("int8_blockwise", scale_with(torch.nan), "weight_scale"),
    "an exponent of NaN": ("mxfp8", scale_with(255), "weight_scale"),
    "an infinite input scale": ("float8_e4m3fn", replaced("input_scale", torch.tensor(torch.inf)), "input_scale"),
    "no scale": ("int8_row", without("weight_scale"), "weight_scale"),
    "no weight": ("int8_row", without("weight"), "weight"),
    "no marker": ("int8_row", without("comfy_quant"), "comfy_quant"),
    "a marker of another format": ("int8_row", replaced("comfy_quant", marker(format="nvfp4")), "comfy_quant"),
    "a marker that is no JSON": ("int8_row", replaced("comfy_quant", torch.zeros(9, dtype=torch.uint8)), "comfy_quant"),
    "an unknown tensor": ("int8_row", replaced("weight_zeros", torch.ones(4)), "weight_zeros"),
    "a float weight": ("int8_row", replaced("weight", torch.ones(512, 256)), "weight"),
    "a weight of another shape": ("int8_row", replaced("weight", torch.ones(256, 256, dtype=torch.int8)), "weight"),
    "a scale of another shape": ("int8_row", replaced("weight_scale", torch.ones(256, 1)), "weight_scale"),
    "a kept tensor in another dtype": ("int8_row", replaced("bias", torch.ones(512, dtype=torch.float64)), "bias"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tensors_are_refused_by_name(digits: Tensors, case: str) -> None:
    name, change, tensor = BROKEN[case]
    tensors, plan = result(digits, name)
    text = problem(change(tensors), plan)
    assert f"{LAYER}.{tensor}" in text
    assert "Nothing was written" in text and text.count(". ") == 0


def problem_if_planned(tensors: Tensors) -> str:
    """What the verification says of tensors that are exactly as planned."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    layers = {name.removesuffix(SUFFIX): tensor for name, tensor in tensors.items() if name.endswith(SUFFIX)}
    markers = {layer: Marker.from_tensor(layer, tensor) for layer, tensor in layers.items()}
    try:
        verify_planned(StateDictSource(tensors), layout, markers)
    except CheckpointError as error:
        return str(error)
    return ""


WRONG_PLANS: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "an unknown tensor": ("int8_row", replaced("weight_zeros", torch.ones(4)), "does not define"),
    "a field that is not understood": (
        "int8_row",
        replaced("comfy_quant", marker(format="int8_tensorwise", zero_point=1)),
        "not understood",
    ),
    "a scale of one dimension": ("int8_row", replaced("weight_scale", torch.ones(512)), "one dimension"),
    "a scale for each row of FP8 codes": ("float8_e4m3fn", replaced("weight_scale", torch.ones(512)), "one dimension"),
    "an input scale of INT8": ("int8_row", replaced("input_scale", torch.tensor(1.0)), "input scale"),
    "E5M2 without its flag": (
        "float8_e5m2",
        replaced("comfy_quant", marker(format="float8_e5m2")),
        "16 bits",
    ),
    "a rotation that does not fit": (
        "int8_convrot",
        replaced("comfy_quant", marker(format="int8_tensorwise", convrot=True, convrot_groupsize=48)),
        "rotation groups of 48",
    ),
    "codes of another dtype": ("int8_row", replaced("weight", torch.ones(512, 256, dtype=torch.uint8)), "uint8"),
}


@pytest.mark.parametrize("case", WRONG_PLANS)
def test_plan_comfyui_cannot_run_is_refused(digits: Tensors, case: str) -> None:
    name, change, words = WRONG_PLANS[case]
    tensors, _ = result(digits, name)
    assert problem_if_planned(tensors) == ""
    text = problem_if_planned(change(tensors))
    assert f"'{LAYER}" in text and words in text


def test_a_header_that_says_something_else_is_refused(digits: Tensors) -> None:
    tensors, plan = result(digits, "int8_row")
    header = {"format_version": "1.0", "layers": {LAYER: {"format": "int8_tensorwise", "convrot": True}}}
    assert "do not agree" in problem(tensors, plan, {HEADER_KEY: json.dumps(header)})
    assert "header" in problem(tensors, plan, {HEADER_KEY: "{"})


@pytest.mark.parametrize("case", ["a scale of zero", "an infinite scale", "a scale of NaN", "an exponent of NaN"])
def test_a_broken_file_never_appears(
    digits_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, change, tensor = BROKEN[case]
    write = CheckpointWriter.write

    def tamper(self: CheckpointWriter, key: str, value: torch.Tensor) -> None:
        write(self, key, change({key: value})[key] if key == f"{LAYER}.{tensor}" else value)

    monkeypatch.setattr(CheckpointWriter, "write", tamper)
    target = tmp_path / "q.safetensors"
    target.write_bytes(b"older")
    with pytest.raises(CheckpointError, match="Nothing was written"):
        quantize_file(digits_path, target, Recipe(format=name))
    assert target.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [target]


def test_a_header_of_other_layers_never_appears(
    digits_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = json.dumps({"layers": {LAYER: {"format": "int8_tensorwise"}}})
    monkeypatch.setattr(provenance, "to_header", lambda markers: other)
    with pytest.raises(CheckpointError, match="do not agree"):
        quantize_file(digits_path, tmp_path / "q.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_layers_of_other_programs_are_not_judged(digits: Tensors) -> None:
    tensors, _ = result(digits, "int8_row")
    foreign = {"other.weight": torch.ones(4, 4), "other.comfy_quant": marker(format="format_of_2027", level=3)}
    verify_layers(StateDictSource(tensors | foreign))
    with pytest.raises(CheckpointError, match="weight_scale"):
        verify_layers(StateDictSource(scale_with(0.0)(tensors)))
