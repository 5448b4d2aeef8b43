"""Quantizing several loaded models to one size together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...quant import QuantError, Recipe
from ...quant.engine import plan_together
from ...quant.layer.memory import largest_peak
from ...quant.notices import Notice
from ...quant.planning.candidates import KeptFigures
from ...quant.planning.machine import leave_out_unusable
from ...quant.planning.pinning import pin_recipe
from ...quant.planning.size_curve import GIGABYTE, SizeCurve
from ...quant.run import Run
from ...quant.workers.workers import Workers
from ..host import running
from ..host.machine import describe_machine
from ..host.registration import refuse_unloadable
from ..page import live
from .loaded import Loaded, Part
from .measured import find_figures
from .quantize import Result, identify_source, quantize_weights


@dataclass(frozen=True, kw_only=True)
class JointPart:
    """A part of one of the models."""

    source: str
    """Name of the model."""
    name: str
    """Of the part, as in `Loaded.parts`."""
    part: Part
    recipe: Recipe
    """With the format ``auto``."""


@dataclass(frozen=True, kw_only=True)
class Joint:
    """The results of several models, by the model's name."""

    results: Mapping[str, Mapping[str, Result]]
    recipes: Mapping[str, Recipe]
    """Recipes of the provenance: they name every layer's format."""
    curve: SizeCurve
    """Error of all models at every size."""
    notices: Sequence[Notice]
    """Formats that were left out."""

    @property
    def from_disk(self) -> bool:
        return all(result.from_disk for results in self.results.values() for result in results.values())


def quantize_together(
    loaded: Mapping[str, Loaded], parts: Sequence[JointPart], nbytes: int, device_choice: str, node_id: str | None
) -> Joint:
    """Quantize models so that their parts together take at most ``nbytes``.

    Args:
        loaded: The models.
        parts: All their parts.
        nbytes: Of all parts.
        device_choice: One of `running.list_choices`.
        node_id: Of the node that shows the progress.

    Raises:
        QuantError: no choice of formats fits; else as `quantize_weights`.
    """
    if nbytes <= 0:
        raise QuantError(
            "The parts of the text encoder that cannot be quantized take more than this size; ask for more."
        )
    target, machine = nbytes / GIGABYTE, describe_machine()
    recipes, notices = list[Recipe](), list[Notice]()
    for entry in parts:
        recipe, left_out = leave_out_unusable(entry.recipe, machine, weight_only=loaded[entry.source].weight_only)
        refuse_unloadable(recipe)
        recipes.append(replace(recipe, target_gb=target))
        notices += [found for found in left_out if found not in notices]
    devices = running.choose_devices(device_choice)
    live.begin(node_id)
    runs = [
        Run(
            recipe=recipe,
            workers=Workers(devices),
            statistics=entry.part.calibration or {},
            measured=_find_figures(entry, loaded, recipe, devices),
            is_loaded_model=True,
        )
        for entry, recipe in zip(parts, recipes, strict=True)
    ]
    weights = [entry.part.weights for entry in parts]
    peaks = (largest_peak(w.tensors, run.recipe, run.statistics) for w, run in zip(weights, runs, strict=True))
    running.make_room(devices, max(peaks))
    plans, curve = running.run_engine(
        lambda progress, cancel: plan_together(
            [(w, replace(run, on_progress=progress, cancel=cancel)) for w, run in zip(weights, runs, strict=True)]
        ),
        node_id,
        live.begin(node_id),
    )
    results: dict[str, dict[str, Result]] = {name: {} for name in loaded}
    pinned = dict[str, Recipe]()
    for entry, recipe, plan in zip(parts, recipes, plans, strict=True):
        source = loaded[entry.source]
        pinned[entry.source] = pin_recipe(plan, recipe) if len(source.parts) == 1 else recipe
        results[entry.source][entry.name] = quantize_weights(
            entry.part.weights, source.stamp, pin_recipe(plan, recipe), device_choice, node_id, entry.part.calibration,
            plan,
        )  # fmt: skip
    return Joint(results=results, recipes=pinned, curve=curve, notices=notices)


def _find_figures(
    entry: JointPart, loaded: Mapping[str, Loaded], recipe: Recipe, devices: Sequence[str]
) -> KeptFigures | None:
    source = identify_source(entry.part.weights, loaded[entry.source].stamp, entry.part.calibration)
    return find_figures(source, recipe, devices)
