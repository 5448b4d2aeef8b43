"""A plan as text."""

from __future__ import annotations

from ..files.tensors import is_layer
from ..notices import render, render_all
from ..planning.plan import LayerPlan, Plan
from ..text import counted, dimensions, kept_lines, megabytes, table


def plan_text(plan: Plan) -> str:
    """A line for each layer, what is kept and why, and the totals."""
    head = ("layer", "shape", "format", "MB", "to MB", "reason")
    rows = [head, *map(_plan_row, plan.layers.values())]
    removed = {name: entry.reason for name, entry in plan.removed.items()}
    kept = kept_lines(((entry.name, entry.reason, entry.origin) for entry in plan.kept.values()), removed)
    return "\n".join([*table(rows, right=frozenset({1, 3, 4})), "", *kept, *render_all(plan.warnings), _summary(plan)])


def _plan_row(layer: LayerPlan) -> tuple[str, ...]:
    group = f", groups of {layer.group}" if layer.group else ""
    sizes = megabytes(layer.source.nbytes), megabytes(layer.nbytes)
    reason = "; ".join([layer.reason, *map(render, layer.notes)])
    return layer.name, dimensions(layer.shape), layer.format.name + group, *sizes, reason


def _summary(plan: Plan) -> str:
    before, after = plan.source_nbytes, plan.nbytes
    kept_layers = sum(is_layer(entry.name, entry.source.shape) for entry in plan.kept.values())
    recognised = plan.profile if plan.certain else f"{plan.profile} (the model is not recognised)"
    return (
        f"{recognised}: {counted(len(plan.layers), 'layer')} to quantize, {counted(kept_layers, 'layer')} and "
        f"{counted(len(plan.kept) - kept_layers, 'other tensor')} to keep; "
        f"{megabytes(before)} -> {megabytes(after)} MB ({after / before:.0%})"
    )
