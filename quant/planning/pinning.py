"""The recipe that makes a settled plan again without measuring: every layer's format by name."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from ..files.tensors import WEIGHT, is_layer
from ..recipe import Recipe
from .plan import Plan


def pin_recipe(plan: Plan, recipe: Recipe) -> Recipe:
    """A recipe that names the format of each layer of a plan.

    Args:
        plan: Settled, from ``recipe`` with the format ``auto``.
        recipe: Its other settings stay.
    """
    formats = {layer.name: layer.format.name for layer in plan.layers.values()}
    kept = [key.removesuffix(WEIGHT) for key, entry in plan.kept.items() if is_layer(key, entry.source.shape)]
    return replace(
        recipe,
        format=Counter(formats.values()).most_common(1)[0][0],
        formats=Recipe().formats,
        target_gb=None,
        target_share=None,
        target_error=None,
        overrides=tuple((_match(name), fmt) for name, fmt in formats.items()),
        exclude=(*recipe.exclude, *map(_match, kept)),
    )


def _match(layer: str) -> str:
    return f"^{re.escape(layer)}$"
