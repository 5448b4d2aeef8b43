"""The inputs that make up a recipe, generated from the declarations of its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from comfy_api.latest import io

from ...quant.planning.profiles import get_profile, profile_names
from ...quant.settings import Setting
from ...quant.settings.kinds import Choice, Many, Name, Real, Switch, Whole
from .layout import Entry, arrange, describe_number, list_options, recommend_first

QuantRecipe = io.Custom("QUANT_RECIPE")
QuantCalibration = io.Custom("QUANT_CALIBRATION")

Kinds = tuple[str, ...]
"""Kinds of profiles, such as ``diffusion``; empty: all."""


def recipe_inputs(*kinds: str, then: Iterable[io.Input] = (), recommends: bool = False) -> list[io.Input]:
    """Build the inputs of a recipe.

    Args:
        *kinds: Kinds of models that the node takes (``diffusion``, ``text_encoder``); none: any model.
        then: The node's own inputs that follow. They stand before the inputs of settings that came later, because
            saved workflows hold values by position.
        recommends: The node knows the model and the calibration, so that it can recommend a format.
    """
    entries = [arrange(later=later) for later in (False, True)]
    first, later = (_make_inputs(recommend_first(group) if recommends else group, kinds) for group in entries)
    return [*first, *then, *later]


def recipe_link() -> io.Input:
    return QuantRecipe.Input(
        "recipe", optional=True, tooltip="A recipe from another node. It replaces every quantization setting here."
    )


def calibration_link() -> io.Input:
    return QuantCalibration.Input(
        "calibration",
        optional=True,
        tooltip="Recorded inputs of this model's layers, from a calibration node: for calibrated rounding, "
        "bias_correction and input_scale.",
    )


def _list_profiles(kinds: Kinds) -> list[str]:
    return [name for name in profile_names() if not kinds or get_profile(name).kind in (*kinds, "any")]


CHOICES: Mapping[str, Callable[[Kinds], list[str]]] = {"profiles": _list_profiles}
"""The lists that `NodeInput.choices` names; the setting's default comes before them."""


def _make_inputs(entries: Iterable[Entry], kinds: Kinds) -> list[io.Input]:
    return [_make_input(entry, kinds) for entry in entries]


def _make_input(entry: Entry, kinds: Kinds) -> io.Input:
    if entry.options:
        options = [io.DynamicCombo.Option(name, _make_inputs(shown, kinds)) for name, shown in entry.options.items()]
        return io.DynamicCombo.Input(entry.name, options=options, optional=entry.optional, tooltip=entry.help)
    assert entry.setting is not None  # the choice between alternatives has options
    widget, details = _choose_widget(entry.setting, kinds)
    folded = {"advanced": True} if entry.advanced else {}
    return widget(entry.name, optional=entry.optional, tooltip=entry.help, **details, **folded)


def _choose_widget(setting: Setting, kinds: Kinds) -> tuple[Any, dict[str, Any]]:
    """The class of an input, and what it takes beside name and help."""
    kind, default = setting.kind, setting.default
    if isinstance(kind, Switch):
        return io.Boolean.Input, {"default": default}
    if isinstance(kind, Whole):
        return io.Int.Input, describe_number(setting)
    if isinstance(kind, Real):
        return io.Float.Input, describe_number(setting)
    if isinstance(kind, Choice):
        return io.Combo.Input, {"options": list_options(setting), "default": str(default)}
    if isinstance(kind, Name):
        return io.Combo.Input, {"options": [default, *CHOICES[setting.node.choices](kinds)], "default": default}
    if isinstance(kind, Many):
        return io.String.Input, {"default": kind.format(default), "multiline": kind.lines}
    raise TypeError(f"No input is known for {type(kind).__name__}, the kind of {setting.name}.")


def nest_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a node gets them: ``a`` and, brought by its choice, ``a.b`` become ``{"a": {"a": ..., "b": ...}}``."""
    parents = set(_parents(recipe_inputs(recommends=True)))
    result: dict[str, Any] = {}
    for name, value in sorted(values.items()):
        *above, own = name.split(".")
        place = result
        for step in above:
            place = place[step]
        place[own] = {own: value} if name in parents else value
    return result


def _parents(inputs: Iterable[io.Input], prefix: str = "") -> Iterator[str]:
    """The full names of the inputs whose choice brings inputs of its own."""
    for entry in inputs:
        if isinstance(entry, io.DynamicCombo.Input):
            yield prefix + entry.id
            for option in entry.options:
                yield from _parents(option.inputs, f"{prefix}{entry.id}.")
