"""From what was given on the command line to a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..errors import RecipeError
from ..formats import FORMATS, format_name
from ..notices import Notice, notice
from ..recipe import AUTO, TARGETS, Recipe, SvdSettings
from .options import DEFAULT_FORMAT, FIELD_FORMATS, KINDS

SVD = "svd."
PLAIN = {f.name for f in fields(Recipe)} - {"format", "rounding", "svd", "overrides", "exclude"}


def make_recipe(given: Mapping[str, Any]) -> Recipe:
    """The recipe meant; what is given goes before the recipe file, and that before the defaults.

    Raises RecipeError for settings that are unknown, out of range or contradict each other.
    """
    base = Recipe.load(given["recipe"]) if "recipe" in given else Recipe(format=DEFAULT_FORMAT)
    svd = {f.name: given[SVD + f.name] for f in fields(SvdSettings) if SVD + f.name in given}
    return replace(
        base,
        format=_format(given, base.format),
        rounding=_rounding(given, bool(svd), base.rounding),
        svd=replace(base.svd, **svd),
        overrides=(*given.get("overrides", ()), *base.overrides),
        exclude=(*given.get("exclude", ()), *base.exclude),
        **{name: given[name] for name in PLAIN if name in given},
    )


def without_effect(given: Mapping[str, Any], recipe: Recipe) -> list[Notice]:
    """Notices of the options that were given and change nothing."""
    notes = []
    formats = {*recipe.candidates, recipe.upgrade, recipe.fallback, *(fmt for _, fmt in recipe.overrides)}
    if "block_size" in given and not any(FORMATS[name].group_size for name in recipe.candidates):
        notes.append(notice("block_size_unused", format=recipe.format))
    if "rotation_group" in given and not any(fmt.rotated for name, fmt in FORMATS.items() if name in formats):
        notes.append(notice("rotation_group_unused", format=recipe.format))
    if "calibration" in given and not recipe.learns:
        notes.append(notice("calibration_only_measures", rounding=recipe.rounding))
    return notes


def _format(given: Mapping[str, Any], default: str) -> str:
    named = _named_format(given)
    own = named if named is not None and named != AUTO else default
    flagged = _flagged_format(given, own)
    if named and flagged and named != flagged:
        raise RecipeError(f"--format {named} contradicts the other options, which ask for {flagged}.")
    return named or flagged or default


def _named_format(given: Mapping[str, Any]) -> str | None:
    if "format" not in given:
        return AUTO if given.keys() & set(TARGETS) else None
    return AUTO if given["format"] == AUTO else format_name(given["format"])


def _flagged_format(given: Mapping[str, Any], default: str) -> str | None:
    """The format that the spellings of the field's converter ask for, None if none of them is given."""
    flags = frozenset(flag for flag in ("int8", "convrot", "mxfp8") if flag in given)
    if flags not in KINDS:
        raise RecipeError(f"{' and '.join(f'--{flag}' for flag in sorted(flags))} exclude each other.")
    if not flags and not given.keys() & {"scaling_mode", "block_size"}:
        return None
    mode, size, kind = given.get("scaling_mode"), given.get("block_size"), KINDS[flags]
    if kind is None:
        spelled = [(kind, mode) for (kind, mode, _), name in FIELD_FORMATS.items() if name == default]
        if not spelled:
            raise RecipeError(f"--scaling-mode and --block-size do not go with the format {default}; name another.")
        kind, own_mode = spelled[0]
        mode = mode or own_mode
    return _field_format(kind, mode, size)


def _field_format(kind: str, mode: str | None, size: int | None) -> str:
    """The first format of a kind with the scaling mode and block size, where they are given and it has such."""
    rows = [(s, name) for (k, m, s), name in FIELD_FORMATS.items() if k == kind and mode in (None, m)]
    if not rows:
        known = ", ".join(f"{k} {m} ({name})" for (k, m, _), name in FIELD_FORMATS.items())
        raise RecipeError(f"--scaling_mode {mode} does not exist for {kind}; there are: {known}.")
    if size is None or rows[0][0] is None:
        return rows[0][1]
    fitting = [name for s, name in rows if s == size]
    if not fitting:
        raise RecipeError(f"--block-size {size} does not exist; there are: {', '.join(str(s) for s, _ in rows)}.")
    return fitting[0]


def _rounding(given: Mapping[str, Any], svd: bool, default: str) -> str:
    wishes = {"--rounding": given.get("rounding")}
    wishes["--simple"] = "nearest" if "simple" in given else None
    wishes["an option of svd (--optimizer ... --full-matrix)"] = "svd" if svd else None
    asked = {spelling: wish for spelling, wish in wishes.items() if wish is not None}
    if len(set(asked.values())) > 1:
        texts = ", ".join(f"{spelling} asks for {wish}" for spelling, wish in asked.items())
        raise RecipeError(f"The rounding is contradictory: {texts}.")
    return next(iter(asked.values()), "calibrated" if "calibration" in given else default)
