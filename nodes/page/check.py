"""What can be said of a quantize node before it runs, from its settings and the header of the file at its input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ...quant import AlreadyQuantizedError, CheckpointError, QuantError, Recipe
from ...quant.files import open_checkpoint
from ...quant.files.dequantized import as_float
from ...quant.files.quantized import quantized_layers
from ...quant.formats import FORMATS, Format
from ...quant.planning.builder import make_plan
from ...quant.planning.plan import Plan
from ...quant.planning.profiles import get_profile, recognise
from ...quant.recipe import AUTO
from ..recipe.inputs import recipe_inputs
from ..recipe.values import make_recipe

COMPUTE: Mapping[str, Callable[[Any], bool]] = {
    "float8_e4m3fn": comfy.model_management.supports_fp8_compute,
    "float8_e5m2": comfy.model_management.supports_fp8_compute,
    "mxfp8": comfy.model_management.supports_mxfp8_compute,
}
"""How ComfyUI asks a device for the formats that it dequantizes where the device lacks them (comfy/ops.py)."""

Remark = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """values: of the node's inputs, as the API format has them. file: the full path of the model file, where known.

    whole: every tensor of the file is the node's business, and its errors are the node's. calibration: one is linked.
    """

    values: Mapping[str, Any]
    file: str | None
    whole: bool
    calibration: bool


def check(question: Question) -> dict[str, Any]:
    """``plan``: what the settings make of the file, None where that is not known. ``remarks``: what to know first.

    A remark has a kind, a level (error: the run would fail; warning; info) and what its sentence needs.
    """
    try:
        recipe = make_recipe(nested(question.values))
    except QuantError as error:
        return {"plan": None, "remarks": [_refused(error, "error")]}
    plan, remarks = _planned(question, recipe)
    if recipe.rounding == "calibrated" and not question.calibration:
        remarks.append({"kind": "no_calibration", "level": "error"})
    formats = _formats(plan, recipe)
    remarks += [{"kind": "needs_pack", "level": "warning", "format": f.name} for f in formats if not f.stock]
    remarks += [_emulated(f) for f in formats if emulated(f)]
    return {"plan": None if plan is None else described(plan), "remarks": remarks}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
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


def emulated(fmt: Format) -> bool:
    """Whether ComfyUI runs this format in 16 or 32 bits on the present device."""
    native = COMPUTE.get(fmt.comfyui_name)
    return native is not None and not native(comfy.model_management.get_torch_device())


def described(plan: Plan) -> dict[str, Any]:
    return {
        "profile": plan.profile,
        "title": get_profile(plan.profile).title,
        "certain": plan.certain,
        "layers": len(plan.layers),
        "kept": len(plan.kept),
        "bytes_before": plan.source_nbytes,
        "bytes_after": plan.nbytes,
        "formats": [fmt.name for fmt in _used(plan)],
    }


def _planned(question: Question, recipe: Recipe) -> tuple[Plan | None, list[Remark]]:
    """The plan for the file, or why there is none."""
    if question.file is None:
        return None, []
    try:
        plan = _plan(question.file, recipe, question.whole)
    except CheckpointError as error:
        # A loader reads more kinds of files than the engine does.
        theirs = not question.whole and not isinstance(error, AlreadyQuantizedError)
        return None, [] if theirs else [_refused(error, "error")]
    except QuantError as error:
        # A loader may rename what is in the file, so that only the run can tell for sure.
        return None, [_refused(error, "error" if question.whole else "warning")]
    return plan, [] if plan.certain else [{"kind": "not_recognised", "level": "info"}]


def _plan(path: str, recipe: Recipe, whole: bool) -> Plan:
    """What the recipe makes of a file: of all of it, or of the diffusion model in it, as a loader takes it out."""
    with open_checkpoint(path) as checkpoint:
        prefix = "" if whole else recognise(checkpoint.shapes).prefix
        quantized = whole or any(layer.startswith(prefix) for layer in quantized_layers(checkpoint))
        tensors = as_float(checkpoint, recipe.dequantize).tensors if quantized else checkpoint.tensors
        inside = {key.removeprefix(prefix): spec for key, spec in tensors.items() if key.startswith(prefix)}
        return make_plan(inside, recipe)


def _formats(plan: Plan | None, recipe: Recipe) -> list[Format]:
    chosen = [FORMATS[name] for name in recipe.candidates] if plan is None or recipe.format == AUTO else _used(plan)
    upgrade = [] if recipe.upgrade is None else [FORMATS[recipe.upgrade]]
    return list(dict.fromkeys(chosen + upgrade))


def _used(plan: Plan) -> list[Format]:
    return list(dict.fromkeys(layer.format for layer in plan.layers.values()))


def _refused(error: QuantError, level: str) -> Remark:
    return {"kind": "refused", "level": level, "text": str(error)}


def _emulated(fmt: Format) -> Remark:
    device = comfy.model_management.get_torch_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return {"kind": "emulated", "level": "warning", "format": fmt.name, "device": name}
