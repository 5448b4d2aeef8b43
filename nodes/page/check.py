"""A quantize node before its run: the plan that its settings make of the file at its input, and what to know first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...quant import AlreadyQuantizedError, CheckpointError, QuantError, Recipe
from ...quant.calibration.collector import ROWS
from ...quant.calibration.statistics import InputStatistics
from ...quant.files import open_checkpoint
from ...quant.files.dequantized import as_float
from ...quant.files.quantized import quantized_layers
from ...quant.formats import FORMATS, Format, needs_notices, pack_notice
from ...quant.layer.memory import largest_peak
from ...quant.notices import Notice, notice
from ...quant.planning.builder import make_plan
from ...quant.planning.loading import check_source
from ...quant.planning.machine import leave_out_unusable
from ...quant.planning.plan import Plan
from ...quant.planning.profiles import get_profile, recognise
from ...quant.planning.recommendation import Situation, recommend
from ...quant.planning.size_curve import GIGABYTE
from ...quant.planning.size_range import find_size_range, refuse_unreachable
from ...quant.recipe import AUTO
from ..host import running
from ..host.machine import computes, describe_machine, device_title
from ..host.registration import refuse_unloadable
from ..recipe.inputs import nest_values
from ..recipe.values import make_recipe, note_unused, read_preset
from . import durations
from .formats_here import note_formats

FULL_SAMPLE = {"": InputStatistics(rows=torch.empty(ROWS, 0, device="meta"))}
"""Stands for a calibration that is not recorded yet: as many rows as the calibration nodes keep by default."""

DEFAULT_SHARE: float = Recipe.declarations()["target_share"].node.default
"""Share of the model's size that a target in gigabytes starts at: the same as of a target that is a share."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A node as the page describes it."""

    values: Mapping[str, Any]
    """Of the node's inputs, as the API format has them."""
    file: str | None
    """Full path of the model file, if the page knows the file."""
    whole: bool
    """The node reads the file itself, so that every tensor of the file and every error is the node's."""
    calibration: bool
    """A calibration is linked or named."""
    sensitivities: bool = False
    """It has sensitivities."""
    weight_only: bool = False
    """The node takes text encoders, whose weights ComfyUI dequantizes whatever the format."""


def check(question: Question) -> dict[str, Any]:
    """Check a node's settings.

    Returns:
        ``plan``: what the settings make of the file, None if that is not known. ``notices``: as `Notice.to_dict`.
    """
    try:
        recipe, reasons = _choose_recipe(question)
    except QuantError as error:
        return answer_check(None, [notice("refused", text=str(error))])
    plan, notices = _plan_file(question, recipe)
    notices = [*notices, *([] if plan is None else _unreachable(plan, recipe, question))]
    if not question.whole:
        recipe, left_out = leave_out_unusable(recipe, describe_machine(), weight_only=plan is None or plan.weight_only)
        notices += left_out
    if recipe.rounding == "calibrated" and not question.calibration:
        notices.append(notice("no_calibration"))
    notices += note_unused(recipe, calibrated=question.calibration)
    formats = _formats(plan, recipe)
    needed = pack_notice(fmt.comfyui_name for fmt in formats)
    notices += [needed] if needed is not None else []
    notices += needs_notices(formats)
    if not question.whole:
        notices += _refusal(recipe)
    notices += [entry for fmt in formats for entry in _note_rounded_inputs(fmt, recipe)]
    weight_only = question.weight_only or (plan is not None and plan.weight_only)
    here = note_formats(formats, weight_only=weight_only, full_precision=recipe.full_precision_matrix_mult)
    shown = None if plan is None else describe_plan(plan, recipe, question)
    return answer_check(shown, [*reasons[:1], *here, *reasons[1:], *notices])


def _describe_cost(plan: Plan, recipe: Recipe, question: Question) -> dict[str, Any]:
    """Memory and time of the run: ``peak`` bytes, and ``seconds`` where such a run has ended here before, else None."""
    devices = running.choose_devices(str(question.values.get("device", running.AUTO)))
    tensors = {name: entry.source for name, entry in plan.entries.items()}
    shapes = [layer.shape for layer in plan.layers.values()]
    return {
        "peak": largest_peak(tensors, recipe, FULL_SAMPLE if question.calibration else {}),
        "seconds": durations.expect(recipe, devices, shapes),
    }


def _choose_recipe(question: Question) -> tuple[Recipe, list[Notice]]:
    """The recipe of the settings, or the recommended one with its reasons. Raises QuantError for bad settings."""
    values = nest_values(question.values)
    recipe, preset, file = make_recipe(values), read_preset(values), question.file
    if preset is None:
        return recipe, []
    if file is None:
        return recipe, [notice("recommended_later")]
    situation = Situation(
        machine=describe_machine(),
        preset=preset,
        calibrated=question.calibration,
        sensitivities=question.sensitivities,
    )
    try:
        result = recommend(lambda tried: _plan(file, tried, question.whole), recipe, situation)
    except QuantError:  # `_plan_file` says why
        return recipe, []
    return result.recipe, [*result.reasons]


def _unreachable(plan: Plan, recipe: Recipe, question: Question) -> list[Notice]:
    """Why no choice of formats meets the recipe's target."""
    try:
        refuse_unreachable(plan, recipe, lambda _: question.calibration)
    except QuantError as error:
        return [notice("refused", text=str(error))]
    return []


def _refusal(recipe: Recipe) -> list[Notice]:
    """Why this ComfyUI builds no model with the recipe; a file can be made of any format."""
    try:
        refuse_unloadable(recipe)
    except QuantError as error:
        return [notice("refused", text=str(error))]
    return []


def answer_check(plan: dict[str, Any] | None, notices: Iterable[Notice]) -> dict[str, Any]:
    """The answer to the page."""
    return {"plan": plan, "notices": [entry.to_dict() for entry in notices]}


def _note_rounded_inputs(fmt: Format, recipe: Recipe) -> list[Notice]:
    """A notice if the present device rounds a format's inputs with one scale for the whole tensor."""
    if not rounds_inputs(fmt) or recipe.full_precision_matrix_mult:
        return []
    return [notice("inputs_rounded", format=fmt.name, device=device_title())]


def rounds_inputs(fmt: Format) -> bool:
    """Whether the present device rounds inputs with one scale for the whole tensor, which loses the most."""
    return fmt.static_input and not fmt.measures_inputs and computes(fmt) is True


def describe_plan(plan: Plan, recipe: Recipe, question: Question) -> dict[str, Any]:
    """The part of a plan that the page shows; ``bytes_after`` is None where only a range is known."""
    kept = plan.kept_layers
    kept_bytes = sum(entry.nbytes for entry in kept)
    return {
        "profile": plan.profile,
        "title": get_profile(plan.profile).title,
        "certain": plan.certain,
        "layers": len(plan.layers),
        "kept_layers": len(kept),
        "kept_bytes": kept_bytes,
        "other_tensors": len(plan.kept) - len(kept),
        "other_bytes": sum(entry.nbytes for entry in plan.kept.values()) - kept_bytes,
        "bytes_before": plan.source_nbytes,
        "bytes_after": plan.nbytes,
        "reachable": None,
        "formats": [fmt.name for fmt in _used(plan)],
        **_describe_choice(plan, recipe, question),
        **_describe_cost(plan, recipe, question),
    }


def _describe_choice(plan: Plan, recipe: Recipe, question: Question) -> dict[str, Any]:
    """What is known of a plan whose formats `auto` chooses: the sizes that it can reach, and the target."""
    reachable = find_size_range(plan, recipe, lambda _: question.calibration)
    if reachable is None:
        return {}
    target = reachable.target(recipe)
    size = None
    if target is not None and target.nbytes >= reachable.smallest:
        size = min(target.nbytes, reachable.largest)
    sizes = {"smallest": reachable.smallest, "largest": reachable.largest, "layers": reachable.layers}
    default = round(DEFAULT_SHARE * reachable.source / GIGABYTE, 3)
    return {"bytes_after": size, "reachable": sizes, "default_gb": default, "formats": list(recipe.candidates)}


def _plan_file(question: Question, recipe: Recipe) -> tuple[Plan | None, list[Notice]]:
    """The plan for the file, or a notice that says why there is none."""
    if question.file is None:
        return None, []
    try:
        plan = _plan(question.file, recipe, question.whole)
    except CheckpointError as error:
        # A loader reads more kinds of files than the engine does.
        theirs = not question.whole and not isinstance(error, AlreadyQuantizedError)
        return None, [] if theirs else [notice("refused", text=str(error))]
    except QuantError as error:
        # A loader may rename what is in the file, so that only the run can tell for sure.
        return None, [notice("refused", "error" if question.whole else "warning", text=str(error))]
    return plan, [*plan.warnings, *([] if plan.certain else [notice("not_recognised")])]


def _plan(path: str, recipe: Recipe, whole: bool) -> Plan:
    """Plan a whole file, or the diffusion model in it as a loader extracts it."""
    with open_checkpoint(path) as checkpoint:
        warnings = check_source(checkpoint, force=False) if whole else ()
        prefix = "" if whole else recognise(checkpoint.shapes).prefix
        quantized = whole or any(layer.startswith(prefix) for layer in quantized_layers(checkpoint))
        tensors = (
            as_float(checkpoint, recipe.dequantize, rotation=recipe.conversion_rotation).tensors
            if quantized
            else checkpoint.tensors
        )
        inside = {key.removeprefix(prefix): spec for key, spec in tensors.items() if key.startswith(prefix)}
        plan = make_plan(inside, recipe)
        return replace(plan, warnings=(*warnings, *plan.warnings))


def _formats(plan: Plan | None, recipe: Recipe) -> list[Format]:
    chosen = [FORMATS[name] for name in recipe.candidates] if plan is None or recipe.format == AUTO else _used(plan)
    upgrade = [] if recipe.upgrade is None else [FORMATS[recipe.upgrade]]
    return _unique(chosen + upgrade)


def _used(plan: Plan) -> list[Format]:
    return _unique(layer.format for layer in plan.layers.values())


def _unique(formats: Iterable[Format]) -> list[Format]:
    """Each format once, in order. By name: formats with a codebook cannot be hashed."""
    return list({fmt.name: fmt for fmt in formats}.values())
