"""The pipeline: a source gives each tensor, a plan says what happens to it, a sink takes the result, and a report
collects what it cost. It serves files, state dicts and the nodes alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from .calibration.calibration import Calibration, note_thin
from .calibration.statistics import NO_STATISTICS, Statistics
from .errors import ProfileError, RecipeError
from .execution import Execution
from .files.dequantized import DequantizedSource, as_float
from .files.sinks import Sink
from .files.sources import Source
from .files.verification import verify_planned
from .formats import pack_notice
from .notices import Notice, notice
from .planning.builder import make_plan
from .planning.candidates import Evaluator
from .planning.loading import check_source
from .planning.mixed_precision import settle_plan, settle_together
from .planning.plan import KeptTensor, LayerPlan, Plan
from .planning.size_curve import SizeCurve
from .planning.size_range import refuse_together, refuse_unreachable
from .recipe import AUTO, OFF, Recipe
from .reports.measurement import Measurement
from .reports.progress import MeasuringProgress
from .reports.provenance import Provenance, build_header
from .reports.report import Report
from .run import Run
from .text import shortened

PENDING_HASH = "0" * 64
"""Holds the place of the source's hash, which is known when the last tensor has been read."""


def quantize(source: Source, sink: Sink, run: Run, plan: Plan | None = None) -> Report:
    """Quantize every tensor of ``source`` into ``sink``; each is read once, in the source's order.

    Args:
        source: The weights.
        sink: Takes the result.
        run: The settings.
        plan: Of `plan_together`, of which the recipe of ``run`` is the pinned one; None: `plan_run` makes one.

    Raises:
        UnloadableError: ComfyUI would not read quantized layers under these names, and ``run`` does not force it.
        AlreadyQuantizedError: the source holds quantized layers, and the recipe does not ask to dequantize them. INT8
            ConvRot layers are converted to formats with the same rotation (`Recipe.conversion_rotation`).
        ProfileError: the profile or the calibration is not this model's, or no layer would be quantized.
        RecipeError: the recipe asks for what cannot be had, such as a target that no choice of formats meets.
        LayerError: a weight cannot be quantized, or a tensor not be held in its planned dtype.
        CheckpointError: the source cannot be read, or the sink not be written or not as planned.
        Cancelled: ``run.cancel`` asked to stop.
        RankError: another rank failed.
    """
    warnings = () if run.is_loaded_model else check_source(source, force=run.force)
    floats = as_float(source, run.recipe.dequantize, rotation=run.recipe.conversion_rotation)
    plan = plan_run(floats, run) if plan is None else plan
    plan = replace(plan, warnings=(*warnings, *list_conversions(floats, plan, run.recipe), *plan.warnings))
    notes, digest = _notes(plan, run), run.statistics.digest if isinstance(run.statistics, Calibration) else None
    pending = _header(plan, floats, run, PENDING_HASH, Measurement.placeholder(digest, notes))
    with sink.open(plan.layout, pending) as output, torch.no_grad():
        report = Execution(run=run, plan=plan, source=floats, output=output).execute(notes)
        run.check_cancelled()
        verify = partial(verify_planned, layout=plan.layout, markers=plan.markers)
        output.commit(_header(plan, floats, run, floats.sha256(), Measurement.of(report, digest)), verify)
    if run.finished is not None:
        run.finished.forget()
    return report


def list_conversions(source: Source, plan: Plan, recipe: Recipe) -> list[Notice]:
    """What the user should know of a source whose quantized layers are converted without being asked to."""
    if recipe.dequantize or not isinstance(source, DequantizedSource):
        return []
    return [notice("converted", layers=len(source.dequantized & plan.layers.keys()))]


def plan_run(source: Source, run: Run) -> Plan:
    """The plan of a run, with everything measured that its recipe leaves to measurement. Errors as in `quantize`."""
    plan, evaluator = _prepare(source, run)
    refuse_unreachable(plan, run.recipe, evaluator.can_weigh)
    (observed,) = _observe([evaluator], [plan], run)
    return settle_plan(plan, source, observed)


def plan_together(parts: Sequence[tuple[Source, Run]]) -> tuple[list[Plan], SizeCurve]:
    """Plan runs that share the target of their recipes, as a diffusion model and its text encoder.

    Args:
        parts: The weights and the settings of each model. The recipes have the format ``auto`` and the same target.

    Returns:
        The plans for `quantize`, and the error of all models at every size.

    Raises:
        QuantError: as `quantize`.
    """
    recipe = parts[0][1].recipe
    floats = [as_float(source, run.recipe.dequantize, rotation=run.recipe.conversion_rotation) for source, run in parts]
    with torch.no_grad():
        prepared = [(*_prepare(source, run), source) for source, (_, run) in zip(floats, parts, strict=True)]
        refuse_together([(plan, evaluator.can_weigh) for plan, evaluator, _ in prepared], recipe)
        plans, evaluators, sources = zip(*prepared, strict=True)
        observed = _observe(evaluators, plans, parts[0][1])
        return settle_together(list(zip(plans, sources, observed, strict=True)), recipe)


def _observe(evaluators: Sequence[Evaluator], plans: Sequence[Plan], run: Run) -> list[Evaluator]:
    """Evaluators that report what they measure as the progress of a run."""
    weights = [{key: layer.shape[0] * layer.shape[1] for key, layer in plan.layers.items()} for plan in plans]
    progress = MeasuringProgress(weights, run.on_progress)
    return [replace(evaluator, observer=progress) for evaluator in evaluators]


def _prepare(source: Source, run: Run) -> tuple[Plan, Evaluator]:
    """The plan without the choices that are left to measurement, and what measures. Errors as in `quantize`."""
    has_rows = any(inputs.rows is not None for inputs in run.statistics.values())
    if run.recipe.rounding == "calibrated" and not has_rows:
        raise RecipeError(
            "Calibrated rounding needs recorded inputs; give a calibration of this model, or choose nearest or svd."
        )
    plan = make_plan(source.tensors, run.recipe, run.statistics)
    inputs = [layer.inputs for layer in plan.layers.values()]
    if run.statistics and all(known is NO_STATISTICS for known in inputs):
        raise ProfileError(
            f"The calibration is of another model: it knows the layer '{next(iter(run.statistics))}' and others, "
            "and none of those to quantize; record it again with this model."
        )
    entries: list[LayerPlan | KeptTensor] = [*plan.layers.values(), *plan.kept.values()]
    misfits = [entry.name for entry in entries if not entry.inputs.fits_width(entry.source.shape)]
    if misfits:
        raise ProfileError(
            f"The calibration is of another model: {len(misfits)} layers have inputs of another width "
            f"({shortened(misfits)}); record it again with this model."
        )
    evaluator = Evaluator(
        recipe=run.recipe,
        workers=run.workers,
        check_cancelled=run.check_cancelled,
        weight_only=plan.weight_only,
        by_sensitivity=all(known.sensitivity is not None for known in inputs),
        kept=run.measured,
    )
    return plan, evaluator


def refuse_impossible(source: Source, recipe: Recipe, statistics: Statistics) -> None:
    """Raise what `quantize` would raise of a plan and of its size, before any weight is read."""
    floats = as_float(source, recipe.dequantize, rotation=recipe.conversion_rotation)
    refuse_unreachable(make_plan(floats.tensors, recipe, statistics), recipe)


def _header(
    plan: Plan, source: Source, run: Run, source_sha256: str | None, measurement: Measurement
) -> dict[str, str]:
    recipe = run.recipe.to_dict()
    provenance = Provenance(recipe=recipe, source_sha256=source_sha256, measurement=measurement)
    return build_header(source.metadata, plan.markers, provenance, prefix=plan.prefix)


def _notes(plan: Plan, run: Run) -> list[Notice]:
    """List the settings that could not be applied, and the assumptions made."""
    layers = list(plan.layers.values())
    needed = pack_notice(layer.format.comfyui_name for layer in layers)
    notes = [*plan.warnings, *([needed] if needed is not None else [])]
    if not plan.certain:
        notes.append(notice("not_recognised"))
    unscaled = sum(layer.input_scale is None for layer in layers)
    if run.recipe.input_scale not in (AUTO, OFF) and unscaled:
        notes.append(notice("no_input_scale", layers=unscaled))
    unprobed = sum(layer.inputs.sensitivity is None for layer in layers)
    if run.recipe.format == AUTO and 0 < unprobed < len(layers):
        notes.append(notice("sensitivities_unused", layers=unprobed))
    if run.recipe.bias_correction == "measured" and all(s.mean is None for s in run.statistics.values()):
        notes.append(notice("no_bias_corrected"))
    notes += note_thin(layer.inputs for layer in layers)
    unrecorded = _find_unrecorded(plan, run)
    if unrecorded:
        notes.append(notice("layers_unrecorded", layers=shortened(unrecorded)))
    return notes


def _find_unrecorded(plan: Plan, run: Run) -> list[str]:
    """Quantized layers that the calibration's recorder watched in vain."""
    watched = run.statistics.unrecorded if isinstance(run.statistics, Calibration) else ()
    names = {*watched, *(plan.prefix + name for name in watched)}
    return [layer.name for layer in plan.layers.values() if layer.name in names]
