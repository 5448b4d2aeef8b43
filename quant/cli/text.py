"""A plan for people to read."""

from __future__ import annotations

from ..planning.plan import LayerPlan, Plan
from ..text import dimensions, left_lines, megabytes, table


def plan_text(plan: Plan) -> str:
    """A plan layer by layer, what it leaves and why, and what it saves."""
    head = ("layer", "shape", "format", "MB", "to MB", "reason")
    rows = [head, *map(_plan_row, plan.layers.values())]
    kept = ((entry.name, entry.reason, entry.origin) for entry in plan.kept.values())
    left = left_lines(kept, {name: entry.reason for name, entry in plan.removed.items()})
    before, after = plan.source_nbytes, plan.nbytes
    recognised = plan.profile if plan.certain else f"{plan.profile} (the model was not recognised)"
    total = (
        f"{recognised}: {len(plan.layers)} layers to quantize, {len(plan.kept)} tensors to keep; "
        f"{megabytes(before)} -> {megabytes(after)} MB ({after / before:.0%})"
    )
    return "\n".join([*table(rows, right=frozenset({1, 3, 4})), "", *left, total])


def _plan_row(layer: LayerPlan) -> tuple[str, ...]:
    group = f", groups of {layer.group}" if layer.group else ""
    sizes = megabytes(layer.source.nbytes), megabytes(layer.nbytes)
    reason = "; ".join([layer.reason, *layer.notes])
    return layer.name, dimensions(layer.shape), layer.format.name + group, *sizes, reason
