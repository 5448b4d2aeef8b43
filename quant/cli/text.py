"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator

from ..notices import render, render_all
from ..planning.plan import LayerPlan, Plan
from ..planning.size_range import find_size_range
from ..recipe import AUTO, Recipe
from ..reports.wording import count_layers
from ..text import counted, dimensions, kept_lines, megabytes, table


def plan_text(plan: Plan, recipe: Recipe) -> str:
    """A line for each layer, what is kept and why, and the totals."""
    head = ("layer", "shape", "format", "MB", "to MB", "reason")
    rows = [
        head,
        *(_plan_row(layer, is_open=recipe.format == AUTO and not layer.fixed) for layer in plan.layers.values()),
    ]
    removed = {name: entry.reason for name, entry in plan.removed.items()}
    largest = sorted(plan.kept.values(), key=lambda entry: -entry.nbytes)
    kept = kept_lines(((entry.name, entry.reason, entry.origin) for entry in largest), removed)
    return "\n".join(
        [*table(rows, right=frozenset({1, 3, 4})), "", *kept, *render_all(plan.warnings), *_summary(plan, recipe)]
    )


def _plan_row(layer: LayerPlan, *, is_open: bool) -> tuple[str, ...]:
    """A layer's line; ``is_open``: its format is chosen in the run."""
    head = layer.name, dimensions(layer.shape)
    if is_open:
        return *head, AUTO, megabytes(layer.source.nbytes), "-", layer.reason
    group = f", groups of {layer.group}" if layer.group else ""
    sizes = megabytes(layer.source.nbytes), megabytes(layer.nbytes)
    reason = "; ".join([layer.reason, *map(render, layer.notes)])
    return *head, layer.format.name + group, *sizes, reason


def _summary(plan: Plan, recipe: Recipe) -> Iterator[str]:
    before, after = plan.source_nbytes, plan.nbytes
    recognised = plan.profile if plan.certain else f"{plan.profile} (the model is not recognised)"
    kept = plan.kept_layers
    kept_bytes = sum(entry.nbytes for entry in kept)
    other_bytes = sum(entry.nbytes for entry in plan.kept.values()) - kept_bytes
    layers = count_layers(f"{counted(len(plan.layers), 'layer')} to quantize", len(kept), kept_bytes, other_bytes)
    reachable = find_size_range(plan, recipe)
    if reachable is None:
        yield f"{recognised}: {layers}; {megabytes(before)} -> {megabytes(after)} MB ({after / before:.0%})"
        return
    target = reachable.target(recipe)
    limit = "" if target is None else f"; the target is at most {megabytes(target.nbytes)} MB"
    yield f"{recognised}: auto chooses the formats of {counted(reachable.layers, 'layer')} in the run, by measurement."
    smallest, largest = megabytes(reachable.smallest), megabytes(reachable.largest)
    yield f"From {megabytes(before)} MB it can reach {smallest} to {largest} MB{limit}."
