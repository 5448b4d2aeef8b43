"""From the values of a command line to a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RecipeError
from ..formats import FORMATS
from ..notices import Notice, notice
from ..planning.recommendation import DECIDED
from ..recipe import AUTO, Recipe
from ..settings import Setting
from .aliases import ALIASES, FormatPart, Preset, choose_default_format, find_aliased_format, get_target
from .options import name_option


def make_recipe(args: Mapping[str, Any]) -> Recipe:
    """Build the recipe; options take precedence over the recipe file, and the file over the defaults.

    Args:
        args: The command line's values by target, without options that were not used.

    Raises:
        RecipeError: for settings that are unknown, out of range or contradict each other.
    """
    base = Recipe.load(args["recipe"]) if "recipe" in args else Recipe(format=choose_default_format(args))
    values = {name: _merge_value(declared, args, base) for name, declared in _select_used(args).items()}
    values |= {name: _settle(name, claims) for name, claims in _collect_claims(args, base).items()}
    if "calibration" in args:
        values.setdefault("rounding", "calibrated")
    return base.with_values(values)


def list_unused(args: Mapping[str, Any], recipe: Recipe) -> list[Notice]:
    """Notices of the options that were used and change nothing."""
    unmet = {name_option(declared): recipe.find_unmet(declared) for declared in _select_used(args).values()}
    notes = [recipe.note_unused(name, when) for name, when in unmet.items() if when is not None]
    if "block_size" in args and not any(FORMATS[name].group_size for name in recipe.candidates):
        notes.append(notice("block_size_unused", format=recipe.format))
    if "calibration" not in args:
        notes += [notice("needs_calibration", option=name_option(declared)) for declared in recipe.list_calibrated()]
    elif not recipe.learns:
        notes.append(notice("calibration_only_measures", rounding=recipe.rounding))
    return notes


def refuse_decided(args: Mapping[str, Any]) -> None:
    """Raise RecipeError for options that contradict ``--recommended``."""
    named = [name_option(Recipe.declarations()[name]) for name in DECIDED if name in args]
    named += [
        spelling
        for spelling, alias in ALIASES.items()
        if get_target(spelling) in args
        and (isinstance(alias, FormatPart) or (isinstance(alias, Preset) and alias.setting in DECIDED))
    ]
    if named:
        raise RecipeError(f"--recommended decides what {named[0]} would; give one of them.")


def _select_used(args: Mapping[str, Any]) -> dict[str, Setting]:
    return {name: declared for name, declared in Recipe.declarations().items() if name in args}


def _merge_value(declared: Setting, args: Mapping[str, Any], base: Recipe) -> Any:
    """Put the values of repeatable options before the recipe file's: the first match decides."""
    value = declared.check(args[declared.name])
    return (*value, *base.get(declared.name)) if declared.repeated else value


def _collect_claims(args: Mapping[str, Any], base: Recipe) -> dict[str, dict[str, Any]]:
    """For each setting that more than its own option can choose: the options that do so, and their values."""
    claims: dict[str, dict[str, Any]] = {}
    settings = _select_used(args)
    for spelling, alias in ALIASES.items():
        if isinstance(alias, Preset) and spelling in args:
            claims.setdefault(alias.setting, {})[spelling] = alias.value
    for declared in settings.values():
        for when in Recipe.conditions(declared):
            if when.implied:
                claims.setdefault(when.setting, {})[name_option(declared)] = when.values[0]
    named = settings["format"].check(args["format"]) if "format" in args else AUTO
    aliased = find_aliased_format(args, base.format if named == AUTO else named)
    if aliased is not None:
        claims.setdefault("format", {})[aliased[0]] = aliased[1]
    for name, declared in settings.items():
        if name in claims:
            claims[name] = {name_option(declared): declared.check(args[name])} | claims[name]
    return claims


def _settle(setting: str, claims: Mapping[str, Any]) -> Any:
    (first, value), *others = claims.items()
    for other, different in others:
        if different != value:
            raise RecipeError(f"{first} contradicts {other}: {setting} would be {value} and {different}.")
    return value
