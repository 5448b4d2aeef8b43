"""Formats and rotations chosen by measurement, on the shipped model and inputs that are correlated as real ones are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import QuantError, Recipe, RecipeError, quantize_file, quantize_state_dict
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.files.tensors import WEIGHT
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.reports.provenance import PROVENANCE_KEY
from calibrated_rounding.quant.reports.report import Report
from safetensors import safe_open
from torch import Tensor

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def known(digits: Tensors) -> dict[str, InputStatistics]:
    """Inputs for every linear layer: of falling spectrum, and of a size of its own for each layer."""
    layers = {key.removesuffix(WEIGHT): t for key, t in digits.items() if key.endswith(WEIGHT) and t.dim() == 2}
    return {name: _inputs(weight.shape[1], i) for i, (name, weight) in enumerate(sorted(layers.items()))}


def _inputs(width: int, seed: int) -> InputStatistics:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    spread = torch.arange(1, width + 1).float() ** -0.7
    rows = torch.randn(256, width, generator=generator) * spread @ mix * 2.0 ** (seed % 5)
    return InputStatistics(rows=rows, absmax=float(rows.abs().max()), count=256)


def size(report: Report) -> int:
    return report.totals.bytes_after


def total_error(report: Report) -> float:
    assert report.precision is not None
    return report.precision.chosen.error


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(("int8_tensor", "int8_row"), "int8_row"), (("float8_e4m3fn", "mxfp8"), "float8_e4m3fn")],
)
def test_auto_takes_other_formats_where_surely_better(
    names: tuple[str, str], chosen: str, digits: Tensors, known: Mapping[str, InputStatistics]
) -> None:
    """Scales of rows are better in every layer; MXFP8 seems up to 3 % better in some layers, and worse in others."""
    first, second = (quantize_state_dict(digits, Recipe(format=name), statistics=known)[1] for name in names)
    ratios = [b.errors.primary.error / a.errors.primary.error for a, b in zip(first.layers, second.layers, strict=True)]
    assert min(ratios) < 0.98
    _, report = quantize_state_dict(digits, Recipe(format="auto", formats=names), statistics=known)
    assert [layer.name for layer in report.layers] == [layer.name for layer in first.layers]
    assert {layer.format for layer in report.layers} == {chosen}


@pytest.mark.parametrize("share", [0.6, 0.68, 0.8])
def test_a_size_is_kept_to_and_used(digits: Tensors, known: Mapping[str, InputStatistics], share: float) -> None:
    recipe = Recipe(format="auto", formats=("int8_convrot",), target_share=share)
    tensors, report = quantize_state_dict(digits, recipe, statistics=known)
    assert share * report.totals.bytes_before - 140_000 < size(report) <= share * report.totals.bytes_before
    assert sum(t.nbytes for t in tensors.values()) == size(report)
    assert report.precision is not None and report.precision.chosen.nbytes == size(report)


def test_it_beats_the_profile_at_the_same_size(digits: Tensors, known: Mapping[str, InputStatistics]) -> None:
    """By the error that it makes small, summed over every layer that either of the two may quantize."""
    by_hand = quantize_state_dict(digits, Recipe(format="int8_convrot"), statistics=known)[1]
    share = size(by_hand) / by_hand.totals.bytes_before
    recipe = Recipe(format="auto", formats=("int8_convrot",), target_share=share)
    chosen = quantize_state_dict(digits, recipe, statistics=known)[1]
    everything = Recipe(format="auto", formats=("int8_convrot",))
    least = quantize_state_dict(digits, everything, statistics=known)[1]
    assert size(chosen) <= size(by_hand)
    assert total_error(chosen) < 0.9 * total_error(least)


def test_target_error_takes_fewest_bytes(digits: Tensors, known: Mapping[str, InputStatistics]) -> None:
    recipe = Recipe(format="auto", formats=("int8_convrot",), target_share=0.7)
    by_size = quantize_state_dict(digits, recipe, statistics=known)[1]
    wanted = Recipe(format="auto", formats=("int8_convrot",), target_error=total_error(by_size))
    by_error = quantize_state_dict(digits, wanted, statistics=known)[1]
    assert total_error(by_error) <= total_error(by_size) * (1 + 1e-6)
    assert size(by_error) <= size(by_size)
    assert by_error.precision is not None
    smaller = [point for point in by_error.precision.curve if point.nbytes < size(by_error) - 1000]
    assert smaller and all(point.error > total_error(by_size) for point in smaller)


def test_kept_layers_need_calibration_and_target(digits: Tensors, known: Mapping[str, InputStatistics]) -> None:
    def kept(**recipe: object) -> set[str]:
        statistics = known if recipe.pop("inputs", True) else {}
        settings = Recipe(format="auto", formats=("int8_row",), **recipe)  # type: ignore[arg-type]
        report = quantize_state_dict(digits, settings, statistics=statistics)[1]
        return {entry.name for entry in report.kept if len(entry.shape) == 2}

    time = "time_projection.1.weight"
    required = {"head.head.weight", "blocks.0.ffn.0.weight"}
    assert time in kept()
    assert time in kept(target_share=0.7, inputs=False)
    assert time not in kept(target_share=0.56)
    assert required <= kept(target_share=0.56)


def test_override_excludes_layer_from_search(digits: Tensors, known: Mapping[str, InputStatistics]) -> None:
    recipe = Recipe(format="auto", overrides=((r"ffn\.2", "mxfp8"),), target_share=0.8)
    report = quantize_state_dict(digits, recipe, statistics=known)[1]
    assert {layer.format for layer in report.layers if "ffn.2" in layer.name} == {"mxfp8"}


def test_without_inputs_the_weights_errors_decide(digits: Tensors) -> None:
    names = ("float8_e5m2", "float8_e4m3fn")
    report = quantize_state_dict(digits, Recipe(format="auto", formats=names))[1]
    assert {layer.format for layer in report.layers} == {"float8_e4m3fn"}
    assert report.precision is not None and not report.precision.by_outputs
    assert "weight error" in report.table()


def test_rotation_stays_where_none_is_surely_better(digits: Tensors, known: Mapping[str, InputStatistics]) -> None:
    def errors(**settings: object) -> list[float]:
        report = quantize_state_dict(digits, Recipe(**settings), statistics=known)[1]  # type: ignore[arg-type]
        return [layer.errors.primary.error for layer in report.layers]

    default, *others = (errors(format="int8_convrot", rotation_group=group) for group in (256, 64, 16))
    report = quantize_state_dict(digits, Recipe(format="int8_convrot", rotation_group="auto"), statistics=known)[1]
    for layer, before, *after in zip(report.layers, default, *others, strict=True):
        error = layer.errors.primary.error
        assert error == before if layer.group == 256 else error < 0.99 * before
        assert error < 0.9 * before or min(after) > 0.85 * before
        assert layer.notes[-1].kind == "rotation_chosen"
    assert any(
        layer.group == 256 and min(after) < before
        for layer, before, *after in zip(report.layers, default, *others, strict=True)
    )


def test_file_and_report_name_chosen_formats(
    digits_path: Path, tmp_path: Path, known: Mapping[str, InputStatistics]
) -> None:
    recipe = Recipe(format="auto", target_share=0.7, rotation_group="auto", scale="auto", rounding="calibrated")
    target = tmp_path / "auto.safetensors"
    report = quantize_file(digits_path, target, recipe, statistics=known)
    with safe_open(target, "pt") as file:
        made = json.loads(file.metadata()[PROVENANCE_KEY])
    assert Recipe.from_dict(made["recipe"]) == recipe
    assert Report.from_dict(json.loads(report.to_json())) == report
    table = report.table()
    assert "chosen" in table and "output error (W8A8)" in table
    assert all(
        layer.format in FORMATS and "format_chosen" in {note.kind for note in layer.notes} for layer in report.layers
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_share": 0.3}, "cannot take it below"),
        ({"target_error": 1e-9}, "leaves every layer as it is"),
        ({"target_share": 1.0}, "leaves every layer as it is"),
        ({"target_share": 0.5, "target_gb": 1.0}, "exclude each other"),
        ({"target_share": 0.0}, "above 0"),
        ({"formats": ()}, "at least one"),
        ({"formats": ("int9",)}, r"formats\[0\] is 'int9'"),
        ({"exclude": (".",)}, "No layer|no layer"),
    ],
)
def test_unreachable_targets_name_reachable_ones(
    digits: Tensors, known: Mapping[str, InputStatistics], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(QuantError, match=message):
        quantize_state_dict(digits, Recipe(format="auto", **settings), statistics=known)  # type: ignore[arg-type]


def test_a_target_needs_the_format_auto() -> None:
    with pytest.raises(RecipeError, match="needs the format auto"):
        Recipe(format="int8_row", target_share=0.5)
