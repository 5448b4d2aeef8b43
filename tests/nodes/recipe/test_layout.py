"""Which inputs a node has for a recipe, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
from calibrated_rounding.nodes.recipe import layout
from calibrated_rounding.nodes.recipe.layout import Entry, arrange, describe_number
from calibrated_rounding.quant.recipe import WITH_SVD, Recipe
from calibrated_rounding.quant.settings import setting
from calibrated_rounding.quant.settings.kinds import Real, Switch, Whole

STEPS = ["iterations", "learning_rate"]
SVD = ["optimizer", *STEPS, "top_p", "min_k", "max_k", "metric", "exact_svd", "random_seed"]
FIRST_RELEASE = [
    "format",
    *("formats", "target", "target_share", "target_gb", "target_error"),
    "profile",
    "rounding",
    *SVD,
    *("damping", "passes"),
    *("exclude", "scale", "rotation_group", "overrides", "fallback", "keep_dtype"),
    *("upgrade", "max_error"),
    *("heuristics", "embeddings", "full_precision_matrix_mult", "dequantize", "bias_correction", "input_scale"),
]
"""Saved workflows hold values in this order. A new setting has ``later=True`` and changes nothing here."""


def walk(entries: Iterable[Entry]) -> Iterator[Entry]:
    for entry in entries:
        yield entry
        for shown in entry.options.values():
            yield from walk(shown)


def test_inputs_keep_their_places() -> None:
    old = [entry for entry in walk(arrange()) if entry.setting is None or not entry.setting.later]
    assert list(dict.fromkeys(entry.name for entry in old)) == FIRST_RELEASE


def test_every_setting_but_expert_ones_has_an_input() -> None:
    shown = {entry.setting.name for entry in walk((*arrange(), *arrange(later=True))) if entry.setting is not None}
    assert shown == {name for name, s in Recipe.declarations().items() if s.level != "expert"}


def test_choices_show_their_settings() -> None:
    entries = {entry.name: entry for entry in walk(arrange())}
    shown = {name: [e.name for e in inputs] for name, inputs in entries["rounding"].options.items()}
    assert shown == {
        "nearest": [],
        "svd": [name for name in SVD if name not in STEPS],
        "calibrated": ["damping", "passes"],
    }
    steps = {name: [e.name for e in inputs] for name, inputs in entries["optimizer"].options.items()}
    assert steps == dict.fromkeys(["original", "adamw", "radam", "prodigy"], STEPS) | {"feedback": []}
    target = {name: [e.name for e in inputs] for name, inputs in entries["target"].options.items()}
    assert target == {"none": [], "share": ["target_share"], "gigabytes": ["target_gb"], "error": ["target_error"]}
    assert all([e.name for e in inputs] == ["max_error"] for inputs in list(entries["upgrade"].options.values())[1:])


def test_the_default_comes_first() -> None:
    for entry in walk(arrange()):
        if entry.options and entry.setting is not None:
            assert next(iter(entry.options)) == str(entry.setting.default or layout.NONE)


def test_numbers_start_somewhere() -> None:
    for entry in walk(arrange()):
        if entry.setting is not None and isinstance(entry.setting.kind, (Whole, Real)):
            number = describe_number(entry.setting)
            assert number["min"] <= number["default"] <= number["max"]


def test_only_settings_that_are_always_shown_are_optional() -> None:
    required = [entry.name for entry in arrange() if not entry.optional]
    assert required == ["format", "profile", "rounding"]
    inner = [e for entry in arrange() for shown in entry.options.values() for e in walk(shown)]
    assert not any(entry.optional for entry in inner)


@dataclass(frozen=True, kw_only=True)
class LaterRecipe(Recipe):
    fresh: bool = setting(False, Switch(), "A setting.", later=True)
    inner: bool = setting(False, Switch(), "Another one.", later=True, when=WITH_SVD)


def test_later_settings_move_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [entry.name for entry in walk(arrange())]
    monkeypatch.setattr(layout, "Recipe", LaterRecipe)
    assert [entry.name for entry in walk(arrange())] == before
    later = [(entry.name, entry.optional, entry.help) for entry in arrange(later=True)]
    assert later[-2:] == [("fresh", True, "A setting."), ("inner", True, "Another one. With rounding svd.")]
