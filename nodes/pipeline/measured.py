"""What `auto` has measured in this session: another target, or another list of formats, measures only what is new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from ...quant import Recipe
from ...quant.planning.candidates import KeptFigures
from ...quant.recipe import AUTO

REMEMBERED = 8
"""Models whose figures are kept."""

_figures: dict[str, KeptFigures] = {}


def find_figures(source: str, recipe: Recipe, devices: Sequence[str]) -> KeptFigures | None:
    """The figures of a model, to be read and added to.

    Args:
        source: Identifies the weights and the calibration.
        recipe: The settings; its targets and formats do not count. None is returned if it measures nothing.
        devices: Where layers are computed.
    """
    if recipe.format != AUTO:
        return None
    open_ended = replace(recipe, target_share=None, target_gb=None, target_error=None).to_dict() | {"formats": None}
    key = json.dumps([source, open_ended, sorted(set(devices))], sort_keys=True)
    found = _figures.pop(key, {})
    _figures[key] = found
    for old in list(_figures)[:-REMEMBERED]:
        del _figures[old]
    return found
