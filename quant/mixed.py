"""Mixed precision by measured error: each layer takes the cheapest of the formats on offer that stays under a limit."""

from __future__ import annotations

from collections.abc import Callable

from .formats import FORMATS
from .layer import Task, quantize_layer
from .plan import LayerPlan, Plan, keep, with_format
from .recipe import Recipe
from .sources import Source


def choose_formats(plan: Plan, source: Source, recipe: Recipe, device: str, tick: Callable[[], None]) -> None:
    """Settle the plan's formats by measurement, where the recipe has an upgrade format and a limit.

    A layer stays in its format if nearest rounding leaves a relative weight error of at most ``max_error``; else it
    takes the upgrade format if that does; else it is kept in floating point. Reads every weight once.
    """
    if recipe.upgrade is None or recipe.max_error is None:
        return
    for key, layer in list(plan.layers.items()):
        tick()
        tried = [layer, *_upgraded(layer, recipe)]
        tried.sort(key=lambda candidate: candidate.nbytes)
        weight = source.read(key)
        errors: list[str] = []
        for candidate in tried:
            fast = Recipe(scale=recipe.scale)
            task = Task(layer.name, weight, candidate.format, candidate.group, fast, device=device, tick=tick)
            error = quantize_layer(task).error
            errors.append(f"{candidate.format.name} {error:.4f}")
            if error <= recipe.max_error:
                plan.layers[key] = candidate
                break
        else:
            keep(plan, key, f"no format stays under a weight error of {recipe.max_error}: {', '.join(errors)}", recipe)


def _upgraded(layer: LayerPlan, recipe: Recipe) -> list[LayerPlan]:
    fmt = FORMATS[recipe.upgrade or recipe.format]
    if not fmt.takes(layer.shape, layer.lookup):
        return []
    note = f"upgraded: {layer.format.name} exceeds a weight error of {recipe.max_error}"
    return [with_format(layer, fmt, recipe, note)]
