"""A quantize node before its run: the plan that its settings make of the file at its input, and what to know first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ...quant import AlreadyQuantizedError, CheckpointError, QuantError, Recipe
from ...quant.files import open_checkpoint
from ...quant.files.dequantized import as_float
from ...quant.files.quantized import quantized_layers
from ...quant.files.tensors import is_layer
from ...quant.formats import FORMATS, Format, needs_notices, pack_notice
from ...quant.notices import Notice, notice
from ...quant.planning.builder import make_plan
from ...quant.planning.loading import check_source
from ...quant.planning.plan import Plan
from ...quant.planning.profiles import get_profile, recognise
from ...quant.recipe import AUTO
from ..host.candidates import computes, is_emulated, leave_out_unusable
from ..host.registration import refuse_unloadable
from ..recipe.inputs import recipe_inputs
from ..recipe.values import make_recipe


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
    """A calibration is linked."""


def check(question: Question) -> dict[str, Any]:
    """Check a node's settings.

    Returns:
        ``plan``: what the settings make of the file, None if that is not known. ``notices``: as `Notice.to_dict`.
    """
    try:
        recipe = make_recipe(nest_values(question.values))
    except QuantError as error:
        return _answer(None, [notice("refused", text=str(error))])
    plan, notices = _plan_file(question, recipe)
    if not question.whole:
        recipe, left_out = leave_out_unusable(recipe, weight_only=plan is None or plan.weight_only)
        notices += left_out
    if recipe.rounding == "calibrated" and not question.calibration:
        notices.append(notice("no_calibration"))
    formats = _formats(plan, recipe)
    needed = pack_notice(fmt.comfyui_name for fmt in formats)
    notices += [needed] if needed is not None else []
    notices += needs_notices(formats)
    if not question.whole:
        notices += _refusal(recipe)
    notices += [entry for fmt in formats if (entry := _hardware_notice(fmt, recipe)) is not None]
    return _answer(plan, notices)


def _refusal(recipe: Recipe) -> list[Notice]:
    """Why this ComfyUI builds no model with the recipe; a file can be made of any format."""
    try:
        refuse_unloadable(recipe)
    except QuantError as error:
        return [notice("refused", text=str(error))]
    return []


def _answer(plan: Plan | None, notices: list[Notice]) -> dict[str, Any]:
    described = None if plan is None else describe_plan(plan)
    return {"plan": described, "notices": [entry.to_dict() for entry in notices]}


def nest_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a node gets them: ``a`` and, brought by its choice, ``a.b`` become ``{"a": {"a": ..., "b": ...}}``."""
    parents = set(_parents(recipe_inputs()))
    result: dict[str, Any] = {}
    for name, value in sorted(values.items()):
        *above, own = name.split(".")
        place = result
        for step in above:
            place = place[step]
        place[own] = {own: value} if name in parents else value
    return result


def _parents(inputs: Iterable[io.Input], prefix: str = "") -> Iterator[str]:
    """The full names of the inputs whose choice brings inputs of its own."""
    for entry in inputs:
        if isinstance(entry, io.DynamicCombo.Input):
            yield prefix + entry.id
            for option in entry.options:
                yield from _parents(option.inputs, f"{prefix}{entry.id}.")


def _hardware_notice(fmt: Format, recipe: Recipe) -> Notice | None:
    """A notice about how the present device runs a format, if the user should know before the run."""
    if is_emulated(fmt):
        return notice("emulated", format=fmt.name, device=_device_title())
    if rounds_inputs(fmt) and not recipe.full_precision_matrix_mult:
        return notice("inputs_rounded", format=fmt.name, device=_device_title())
    return None


def rounds_inputs(fmt: Format) -> bool:
    """Whether the present device rounds inputs with one scale for the whole tensor, which loses the most."""
    return fmt.static_input and computes(fmt) is True


def describe_plan(plan: Plan) -> dict[str, Any]:
    """The part of a plan that the page shows."""
    kept_layers = sum(is_layer(entry.name, entry.source.shape) for entry in plan.kept.values())
    return {
        "profile": plan.profile,
        "title": get_profile(plan.profile).title,
        "certain": plan.certain,
        "layers": len(plan.layers),
        "kept_layers": kept_layers,
        "other_tensors": len(plan.kept) - kept_layers,
        "bytes_before": plan.source_nbytes,
        "bytes_after": plan.nbytes,
        "formats": [fmt.name for fmt in _used(plan)],
    }


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
        return replace(make_plan(inside, recipe), warnings=warnings)


def _formats(plan: Plan | None, recipe: Recipe) -> list[Format]:
    chosen = [FORMATS[name] for name in recipe.candidates] if plan is None or recipe.format == AUTO else _used(plan)
    upgrade = [] if recipe.upgrade is None else [FORMATS[recipe.upgrade]]
    return list(dict.fromkeys(chosen + upgrade))


def _used(plan: Plan) -> list[Format]:
    return list(dict.fromkeys(layer.format for layer in plan.layers.values()))


def _device_title() -> str:
    device = comfy.model_management.get_torch_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
