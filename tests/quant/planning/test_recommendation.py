"""What is recommended for a card, a model and a preset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import plan_file
from calibrated_rounding.quant.files.tensors import Spec
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.notices import render
from calibrated_rounding.quant.planning.builder import make_plan
from calibrated_rounding.quant.planning.machine import CARDS, Machine, detect_machine, list_products
from calibrated_rounding.quant.planning.plan import Plan
from calibrated_rounding.quant.planning.recommendation import (
    CLOSENESS,
    PRESETS,
    ROUNDED_INPUTS,
    Recommendation,
    Situation,
    list_formats,
    recommend,
)
from calibrated_rounding.quant.recipe import Recipe

ROOT = Path(__file__).parents[3]
GIB = 2**30
LAYERS = 8
MODEL = {f"blocks.{i}.ffn.0.weight": Spec(torch.bfloat16, (16384, 32768)) for i in range(LAYERS)}
"""8 GiB in 16 bits."""
ENCODER = next((ROOT / "examples" / "models" / "text_encoders").glob("*.safetensors"))
RTX_30, RTX_40, RTX_50 = (8, 6), (8, 9), (12, 0)


def plan_model(recipe: Recipe) -> Plan:
    return make_plan(MODEL, recipe)


def card(
    capability: tuple[int, int] = RTX_30, memory: float | None = 24.0, loads: frozenset[str] | None = None
) -> Machine:
    return Machine(
        title="a card",
        memory=None if memory is None else int(memory * GIB),
        computes=list_products(capability),
        loads=frozenset(FORMATS) if loads is None else loads,
    )


def choose(machine: Machine, preset: str = "balanced", **details: bool) -> Recommendation:
    return recommend(plan_model, Recipe(), Situation(machine=machine, preset=preset, **details))


def kinds(result: Recommendation) -> list[str]:
    return [entry.kind for entry in result.reasons]


def texts(result: Recommendation) -> str:
    return " ".join(map(render, result.reasons))


@pytest.mark.parametrize("capability", [card.capability for card in CARDS])
def test_balanced_preset_has_8_bits_on_every_card(capability: tuple[int, int]) -> None:
    recipe = choose(card(capability)).recipe
    assert (recipe.format, recipe.rounding) == ("int8_convrot", "nearest")


@pytest.mark.parametrize(("memory", "fmt"), [(6.0, "int8_convrot"), (4.5, "w6a8"), (3.0, "w4a8"), (1.0, "w4a8")])
def test_balanced_preset_leaves_room_for_activations(memory: float, fmt: str) -> None:
    result = choose(card(memory=memory))
    assert result.recipe.format == fmt
    fits = result.plan.nbytes <= 0.8 * memory * GIB
    assert kinds(result)[0] == ("recommended_fits" if fits else "recommended_too_large")


def test_small_preset_takes_closest_format_that_loads() -> None:
    assert choose(card(RTX_50), "small").recipe.format == "w4a8"
    old = frozenset(FORMATS) - {"w4a8", "w6a8"}
    assert choose(card(RTX_50, loads=old), "small").recipe.format == "nvfp4"


def test_best_preset_does_not_shrink_further() -> None:
    assert choose(card(memory=1.0), "best").recipe.format == "int8_convrot"


def test_calibration_is_used() -> None:
    result = choose(card(), calibrated=True)
    assert result.recipe.rounding == "calibrated"
    assert "calibration_helps" not in kinds(result)
    gain = CLOSENESS["int8_convrot"]
    assert f"{gain.calibrated} dB, not {gain.nearest} dB" in texts(choose(card()))


def test_sensitivities_choose_layers_at_same_size() -> None:
    result = choose(card(), "best", calibrated=True, sensitivities=True)
    assert (result.recipe.format, result.recipe.formats) == ("auto", ("int8_convrot",))
    assert result.recipe.target_gb == pytest.approx(result.plan.nbytes / 1e9)
    assert choose(card(), "balanced", calibrated=True, sensitivities=True).recipe.format == "int8_convrot"


def test_fp8_units_are_a_reason() -> None:
    fp8, int8 = ROUNDED_INPUTS["float8_e4m3fn"].nearest, CLOSENESS["int8_convrot"].nearest
    assert f"{fp8} dB on the shipped model, int8_convrot {int8} dB" in texts(choose(card(RTX_40)))
    assert "fp8_less_close" not in kinds(choose(card(RTX_30)))


def test_model_that_fits_needs_no_quantization() -> None:
    assert "float_fits" in kinds(choose(card(memory=24.0)))
    assert "float_fits" not in kinds(choose(card(memory=9.0)))
    assert "float_fits" not in kinds(choose(card(memory=None)))


def test_other_settings_stay() -> None:
    base = Recipe(exclude=(r"blocks\.0\.",), scale="mse")
    result = recommend(plan_model, base, Situation(machine=card()))
    assert (result.recipe.exclude, result.recipe.scale) == (base.exclude, "mse")
    assert len(result.plan.layers) == LAYERS - 1


def test_text_encoders_are_never_multiplied_in_8_bits() -> None:
    result = recommend(lambda recipe: plan_file(ENCODER, recipe), Recipe(), Situation(machine=card(RTX_40)))
    assert "fp8_less_close" not in kinds(result)


def test_formats_run_as_the_card_allows() -> None:
    ways = {
        capability: {row.name: row.way for row in list_formats(card(capability))}
        for capability in (RTX_30, RTX_40, RTX_50)
    }
    assert [ways[c]["float8_e4m3fn"] for c in ways] == ["memory", "8 bits", "8 bits"]
    assert [ways[c]["nvfp4"] for c in ways] == ["memory", "memory", "4 bits"]
    assert {ways[c]["int8_convrot"] for c in ways} == {"8 bits"}
    assert {ways[c]["float8_e5m2"] for c in ways} == {"memory"}


def test_closeness_is_the_measured_one() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "sampling.json").read_text(encoding="utf-8"))["rows"]
    figures = {row["case"]: row["value"] for row in rows if row["metric"] == "mean PSNR of latents"}
    units = {f"{name}, FP8 units": value for name, value in ROUNDED_INPUTS.items() if value is not None}
    for name, closeness in {**CLOSENESS, **units}.items():
        measured = (figures[f"{name}, nearest"], figures[f"{name}, calibrated"])
        assert (closeness.nearest, closeness.calibrated) == tuple(round(value, 1) for value in measured), name


def test_cpu_is_described_by_its_memory() -> None:
    machine = detect_machine("cpu")
    assert machine.title == "CPU" and "int8_convrot" in machine.computes and "float8_e4m3fn" not in machine.computes
    assert machine.memory is None or machine.memory > GIB // 4


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_recommended_for_an_unknown_machine(preset: str) -> None:
    assert choose(Machine(title="?"), preset).recipe.format in FORMATS
