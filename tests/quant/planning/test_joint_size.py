"""Several models within one size: the shipped diffusion model and the shipped text encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import Progress, Recipe, RecipeError, quantize_state_dict
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.engine import plan_together, quantize
from calibrated_rounding.quant.files.sinks import StateDictSink
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.layer.task import LayerTask, QuantizedLayer
from calibrated_rounding.quant.planning import candidates
from calibrated_rounding.quant.planning.candidates import KeptFigures
from calibrated_rounding.quant.planning.pinning import pin_recipe
from calibrated_rounding.quant.planning.plan import Plan
from calibrated_rounding.quant.planning.size_curve import SizeCurve
from calibrated_rounding.quant.run import Run
from safetensors.torch import load_file
from torch import Tensor

ENCODER = Path(__file__).parents[3] / "examples" / "models" / "text_encoders" / "digits_gemma2.safetensors"
FORMATS = ("int8_convrot", "w6a8", "w4a8")


@pytest.fixture(scope="module")
def sources(digits: dict[str, Tensor]) -> list[StateDictSource]:
    return [StateDictSource(digits), StateDictSource(load_file(ENCODER))]


def recipe_for(nbytes: int) -> Recipe:
    return Recipe(format="auto", formats=FORMATS, target_gb=nbytes / 1e9)


def plan(sources: list[StateDictSource], nbytes: int) -> tuple[list[Plan], SizeCurve]:
    return plan_together([(source, Run(recipe=recipe_for(nbytes), force=True)) for source in sources])


def size_of(sources: list[StateDictSource]) -> list[int]:
    return [sum(tensor.nbytes for tensor in source.tensors.values()) for source in sources]


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def squared_error(plans: list[Plan]) -> float:
    """The sum that the split makes small."""
    return sum(p.size_curve.chosen.error**2 for p in plans if p.size_curve is not None)


@pytest.mark.parametrize("share", [0.54, 0.62])
def test_joint_sizes_fit_and_use_the_target(sources: list[StateDictSource], share: float) -> None:
    target = round(share * sum(size_of(sources)))
    plans, curve = plan(sources, target)
    total = sum(p.nbytes for p in plans)
    assert 0.99 * target < total <= target
    assert curve.chosen.nbytes == total
    assert curve.chosen.error**2 == pytest.approx(squared_error(plans) / 2)


def test_joint_split_beats_proportional_split(sources: list[StateDictSource]) -> None:
    sizes = size_of(sources)
    target = round(0.58 * sum(sizes))
    together, _ = plan(sources, target)
    apart = [plan([source], round(0.58 * size))[0][0] for source, size in zip(sources, sizes, strict=True)]
    assert squared_error(together) < 0.95 * squared_error(apart)


def test_pinned_recipe_repeats_the_planned_result(sources: list[StateDictSource]) -> None:
    target = round(0.56 * sum(size_of(sources)))
    for source, planned in zip(sources, plan(sources, target)[0], strict=True):
        run = Run(recipe=pin_recipe(planned, recipe_for(target)), force=True)
        sinks = StateDictSink(), StateDictSink()
        report, _ = quantize(source, sinks[0], run, planned), quantize(source, sinks[1], run)
        first, second = (sink.tensors for sink in sinks)
        assert report.totals.bytes_after == planned.nbytes
        assert first.keys() == second.keys()
        assert all(torch.equal(as_bytes(first[key]), as_bytes(second[key])) for key in first)


def test_kept_figures_spare_measuring_and_change_nothing(
    sources: list[StateDictSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, quantize_layer = list[str](), candidates.quantize_layer

    def counting(task: LayerTask) -> QuantizedLayer:
        measured.append(task.format.name)
        return quantize_layer(task)

    monkeypatch.setattr(candidates, "quantize_layer", counting)
    kept: list[KeptFigures] = [{}, {}]

    def plan_kept(share: float, formats: tuple[str, ...]) -> list[list[tuple[str, str]]]:
        recipe = replace(recipe_for(round(share * sum(size_of(sources)))), formats=formats)
        runs = [Run(recipe=recipe, force=True, measured=figures) for figures in kept]
        measured.clear()
        plans, _ = plan_together(list(zip(sources, runs, strict=True)))
        return [[(layer.name, layer.format.name) for layer in plan.layers.values()] for plan in plans]

    plan_kept(0.62, FORMATS[:2])
    assert set(measured) == set(FORMATS[:2])
    chosen = plan_kept(0.56, FORMATS)
    assert set(measured) == {"w4a8"}, "only the new format is measured"
    assert plan_kept(0.56, FORMATS) == chosen and measured == []
    kept[:] = [{}, {}]
    assert plan_kept(0.56, FORMATS) == chosen


def test_measuring_counts_all_layers_of_all_models(sources: list[StateDictSource]) -> None:
    seen = list[Progress]()
    recipe = recipe_for(round(0.6 * sum(size_of(sources))))
    plan_together([(source, Run(recipe=recipe, force=True, on_progress=seen.append)) for source in sources])
    assert {progress.stage for progress in seen} == {"measuring"}
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total > 19 and seen[-1].fraction == 1


def test_too_small_joint_target_is_refused(sources: list[StateDictSource]) -> None:
    with pytest.raises(RecipeError, match="cannot take it below"):
        plan(sources, 100_000)


def test_text_encoders_are_judged_with_float_inputs() -> None:
    """ComfyUI dequantizes the weights of text encoders, whatever the format."""
    name = "model.layers.0.mlp.up_proj"
    inputs = InputStatistics(rows=torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), count=64)
    _, report = quantize_state_dict(load_file(ENCODER), Recipe(format="nvfp4"), statistics={name: inputs}, force=True)
    errors = next(layer.errors for layer in report.layers if layer.name == name)
    assert errors.output_w8a8 is not None and errors.output_w8a16 is not None
    assert errors.output_w8a8.error == pytest.approx(errors.output_w8a16.error, rel=1e-3)
