"""The recipe that the values of a node's inputs mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ...quant import QuantError, Recipe
from ...quant.calibration.calibration import Calibration
from ...quant.notices import Notice, notice
from ...quant.planning.machine import Machine
from ...quant.planning.plan import Plan
from ...quant.planning.recommendation import PRESET, RECOMMENDED, Situation, recommend
from ...quant.recipe import AUTO
from ...quant.settings import Setting
from .layout import FORMAT, NONE, Entry, arrange

DECIDED = (FORMAT, "rounding", "upgrade")
"""Inputs that a recommendation decides."""

JOINT_FORMATS = ("int8_convrot", "w6a8", "w4a8", "nvfp4")
"""Formats that Quantize to a Size chooses from without a recipe."""


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Build the recipe of a node's values, or return the linked one.

    Args:
        values: Value of each input; a choice that shows inputs is a mapping, with its own value under its own name.
            With a recommendation in place of a format, the recipe has the other settings alone.

    Raises:
        RecipeError: for values that do not fit.
    """
    linked = values.get("recipe")
    if linked is not None:
        return linked
    if read_preset(values) is not None:
        values = {name: value for name, value in values.items() if name not in DECIDED}
    return Recipe().with_values(_read(values, (*arrange(), *arrange(later=True))))


def read_preset(values: Mapping[str, Any]) -> str | None:
    """The preset of a node that recommends; None if its values choose a format, or a recipe is linked."""
    choice = values.get(FORMAT)
    if values.get("recipe") is not None or not isinstance(choice, Mapping) or choice[FORMAT] != RECOMMENDED:
        return None
    return str(PRESET.check(choice.get(PRESET.name, PRESET.default)))


def choose_recipe(
    values: Mapping[str, Any],
    make_plan: Callable[[Recipe], Plan],
    machine: Machine,
    calibration: Calibration | None,
) -> tuple[Recipe, list[Notice]]:
    """The recipe to run: `make_recipe`, or a recommendation and its reasons.

    Args:
        values: As for `make_recipe`.
        make_plan: Plans the model.
        machine: The machine that the result will run on.
        calibration: Of the model.

    Raises:
        QuantError: for values that do not fit, and as ``make_plan``.
    """
    recipe, preset = make_recipe(values), read_preset(values)
    if preset is None:
        return recipe, []
    situation = Situation(
        machine=machine,
        preset=preset,
        calibrated=calibration is not None,
        sensitivities=calibration is not None and bool(calibration.sensitivities),
    )
    result = recommend(make_plan, recipe, situation)
    return result.recipe, [*result.reasons]


def choose_joint_recipe(linked: Recipe | None, *, calibrated: bool) -> Recipe:
    """The recipe for several models to one size: the linked one, or calibrated rounding where there is a calibration.

    Raises:
        QuantError: if the linked recipe names a format.
    """
    if linked is None:
        return Recipe(format=AUTO, formats=JOINT_FORMATS, rounding="calibrated" if calibrated else "nearest")
    if linked.format != AUTO:
        raise QuantError(
            f"The linked recipe has the format {linked.format}, which leaves nothing to choose; set its format to "
            "auto, and formats to the ones to choose from."
        )
    return replace(linked, target_share=None, target_error=None, target_gb=None)


def _read(values: Mapping[str, Any], entries: Iterable[Entry]) -> dict[str, Any]:
    """Values of settings, by full name."""
    result: dict[str, Any] = {}
    for entry in entries:
        value = values.get(entry.name)
        if entry.options and value:
            option = value[entry.name]
            result |= _read(value, entry.options.get(option, ()))
            value = option
        if entry.setting is not None and value is not None:
            result[entry.setting.name] = _read_value(entry.setting, value)
    return result


def _read_value(setting: Setting, value: Any) -> Any:
    if setting.default is None and value in (NONE, setting.node.empty):
        return None
    return setting.parse(value) if isinstance(value, str) else value


def lines(text: str) -> tuple[str, ...]:
    """The lines of a text without the empty ones."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def note_unused(recipe: Recipe, *, calibrated: bool) -> list[Notice]:
    """Notices of the settings that have no effect, and of a calibration that nothing is learned from.

    Args:
        recipe: The settings.
        calibrated: Whether a calibration is linked.
    """
    unmet = [recipe.note_unused(_name_input(setting), when) for setting, when in recipe.list_unmet()]
    if not calibrated:
        return [*unmet, *(notice("needs_calibration", option=_name_input(s)) for s in recipe.list_calibrated())]
    return unmet if recipe.learns else [*unmet, notice("calibration_only_measures", rounding=recipe.rounding)]


def _name_input(setting: Setting) -> str:
    return setting.node.name or setting.field_name
