"""The recipe that the values of `recipe_inputs` mean."""

from __future__ import annotations

import re
from typing import Any

from ...quant import Recipe, SvdSettings
from ...quant.calibration.file import Calibration
from ...quant.errors import RecipeError
from ...quant.notices import Notice, notice
from ...quant.recipe import AUTO, TARGETS, CalibratedSettings
from .inputs import DEFAULTS, FEEDBACK, NONE

PLAIN = (
    *("scale", "fallback", "heuristics", "embeddings", "keep_dtype", "full_precision_matrix_mult", "dequantize"),
    *("bias_correction", "input_scale"),
)
"""Inputs whose value is that of the recipe's field of the same name."""


def make_recipe(values: dict[str, Any]) -> Recipe:
    """The recipe that a node's values mean: the linked one, if there is one. Raises RecipeError."""
    linked = values.get("recipe")
    if linked is not None:
        return linked
    rounding = values["rounding"]
    settings: dict[str, Any] = {"profile": values["profile"], **_chosen_format(values["format"]), **_mixed(values)}
    settings["rounding"] = rounding["rounding"]
    if rounding["rounding"] == "svd":
        settings |= {"svd": _svd(rounding), "seed": rounding["random_seed"]}
    if rounding["rounding"] == "calibrated":
        settings["calibrated"] = CalibratedSettings(damping=rounding["damping"] or None, passes=rounding["passes"])
    group = values.get("rotation_group", DEFAULTS.rotation_group)
    settings["rotation_group"] = group if group == AUTO else int(group)
    settings["exclude"] = lines(values.get("exclude", ""))
    settings["overrides"] = tuple(map(_override, lines(values.get("overrides", ""))))
    return Recipe(**settings, **{name: values[name] for name in PLAIN if name in values})


def _chosen_format(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe's fields that the format input stands for."""
    if values["format"] != AUTO:
        return {"format": values["format"]}
    target = values["target"]
    wanted = {name: target[name] for name in TARGETS if name in target}
    return {"format": AUTO, "formats": tuple(re.findall(r"\w+", values["formats"])), **wanted}


def _svd(values: dict[str, Any]) -> SvdSettings:
    optimizer = values["optimizer"]
    steps = {}
    if optimizer["optimizer"] != FEEDBACK:
        steps = {"iterations": optimizer["iterations"], "lr": optimizer["learning_rate"] or None}
    directions = {name: values[name] for name in ("top_p", "min_k", "max_k", "metric")}
    return SvdSettings(optimizer=optimizer["optimizer"], full=values["exact_svd"], **steps, **directions)


def _mixed(values: dict[str, Any]) -> dict[str, Any]:
    upgrade = values.get("upgrade") or {"upgrade": NONE}
    if upgrade["upgrade"] == NONE:
        return {}
    return {"upgrade": upgrade["upgrade"], "max_error": upgrade["max_error"]}


def _override(line: str) -> tuple[str, str]:
    pattern, equals, fmt = line.rpartition("=")
    if not equals:
        raise RecipeError(f"The override '{line}' has no '='; write REGEX=FORMAT, one a line.")
    return pattern.strip(), fmt.strip()


def lines(text: str) -> tuple[str, ...]:
    """What a text has one a line; empty lines are left out."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def unused_note(recipe: Recipe, calibration: Calibration | None) -> list[Notice]:
    """Says so if a calibration is linked and nothing is learned from it; else empty."""
    if calibration is None or recipe.learns:
        return []
    return [notice("calibration_only_measures", rounding=recipe.rounding)]
