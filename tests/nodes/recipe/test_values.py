"""The recipe that a node's values mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from calibrated_rounding.nodes.recipe.layout import Entry, arrange
from calibrated_rounding.nodes.recipe.values import make_recipe
from calibrated_rounding.quant import Recipe, RecipeError, SvdSettings
from calibrated_rounding.quant.recipe import CalibratedSettings

BASE = {"format": {"format": "int8_convrot"}, "profile": "auto", "rounding": {"rounding": "nearest"}}
STEPS = {"optimizer": "radam", "iterations": 7, "learning_rate": 0.0}
SVD = {"top_p": 0.5, "min_k": 2, "max_k": 9, "metric": "inputs", "exact_svd": True, "random_seed": 3}

CASES: dict[str, tuple[dict[str, Any], Recipe]] = {
    "defaults": ({}, Recipe()),
    "format": ({"format": {"format": "mxfp8"}}, Recipe(format="mxfp8")),
    "auto": (
        {"format": {"format": "auto", "formats": "int8, fp8 mxfp8", "target": {"target": "none"}}},
        Recipe(format="auto", formats=("int8_row", "float8_e4m3fn", "mxfp8")),
    ),
    "target": (
        {"format": {"format": "auto", "formats": "fp8", "target": {"target": "gigabytes", "target_gb": 8.0}}},
        Recipe(format="auto", formats=("float8_e4m3fn",), target_gb=8.0),
    ),
    "svd": (
        {"rounding": {"rounding": "svd", "optimizer": STEPS, **SVD}},
        Recipe(
            rounding="svd",
            svd=SvdSettings(optimizer="radam", iterations=7, top_p=0.5, min_k=2, max_k=9, metric="inputs", full=True),
            seed=3,
        ),
    ),
    "learning rate": (
        {"rounding": {"rounding": "svd", "optimizer": STEPS | {"learning_rate": 0.25}}},
        Recipe(rounding="svd", svd=SvdSettings(optimizer="radam", iterations=7, lr=0.25)),
    ),
    "no steps": (
        {"rounding": {"rounding": "svd", "optimizer": {"optimizer": "feedback"}}},
        Recipe(rounding="svd", svd=SvdSettings(optimizer="feedback")),
    ),
    "damping is found": (
        {"rounding": {"rounding": "calibrated", "damping": 0.0, "passes": 0}},
        Recipe(rounding="calibrated", calibrated=CalibratedSettings(passes=0)),
    ),
    "damping": (
        {"rounding": {"rounding": "calibrated", "damping": 0.5, "passes": 2}},
        Recipe(rounding="calibrated", calibrated=CalibratedSettings(damping=0.5)),
    ),
    "lines": (
        {"exclude": "^a$\n\n  b  \n", "overrides": "(?:=x) = bf16\nb=mxfp8"},
        Recipe(exclude=("^a$", "b"), overrides=(("(?:=x)", "bfloat16"), ("b", "mxfp8"))),
    ),
    "upgrade": (
        {"upgrade": {"upgrade": "mxfp8", "max_error": 0.05}},
        Recipe(upgrade="mxfp8", max_error=0.05),
    ),
    "no upgrade": ({"upgrade": {"upgrade": "none"}}, Recipe()),
    "numbers in a choice": ({"rotation_group": "64"}, Recipe(rotation_group=64)),
    "names in a choice": ({"rotation_group": "auto", "scale": "mse"}, Recipe(rotation_group="auto", scale="mse")),
    "switches": ({"dequantize": True, "heuristics": False}, Recipe(dequantize=True)),
    "nothing given": ({"exclude": None, "upgrade": None, "scale": None}, Recipe()),
}


@pytest.mark.parametrize("case", CASES)
def test_values_mean_their_recipe(case: str) -> None:
    values, recipe = CASES[case]
    assert make_recipe(BASE | values) == recipe


def test_a_linked_recipe_replaces_all_values() -> None:
    linked = Recipe(format="mxfp8")
    assert make_recipe(BASE | {"scale": "mse", "recipe": linked}) is linked


def initial(entries: Iterable[Entry]) -> dict[str, Any]:
    """Values of a node as it is added to a graph, where a setting has a default."""
    found: dict[str, Any] = {}
    for entry in entries:
        if entry.options:
            option, shown = next(iter(entry.options.items()))
            found[entry.name] = {entry.name: option, **initial(shown)}
        elif entry.setting is not None:
            found[entry.name] = entry.setting.kind.format(entry.setting.default)
    return found


def test_a_new_node_has_the_default_recipe() -> None:
    entries = [e for e in arrange() if e.setting is None or not isinstance(e.setting.default, bool)]
    assert make_recipe(initial(entries)) == Recipe()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"format": {"format": "int9"}}, "format is 'int9'; choose one of"),
        ({"overrides": "mxfp8"}, "overrides is 'mxfp8'; it must be REGEX=FORMAT."),
        ({"exclude": "a\n("}, r"exclude\[1\] is '\('; it must be a regular expression"),
        ({"dequantize": "yes"}, "dequantize is 'yes'; it must be true or false."),
        ({"rounding": {"rounding": "calibrated", "damping": "x", "passes": 2}}, "calibrated.damping is 'x'"),
        ({"rounding": {"rounding": "calibrated", "damping": 0.0, "passes": -1}}, "calibrated.passes is -1"),
    ],
)
def test_bad_values_are_refused_in_a_sentence(values: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        make_recipe(BASE | values)
