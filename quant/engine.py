"""The pipeline: a source gives each tensor, a plan says what happens to it, a sink takes the result, and a report
collects what it cost. It serves files, state dicts and the nodes alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from .calibration.statistics import NO_STATISTICS, Statistics
from .errors import Cancelled, ProfileError, RecipeError
from .files.dequantized import DequantizedSource, as_float
from .files.sinks import Output, Sink
from .files.sources import Source
from .files.tensors import WEIGHT
from .files.verification import verify_planned
from .formats import pack_notice
from .formats.dequantize import dequantize_layer
from .formats.marker import SUFFIX
from .layer import bias
from .layer.overflow import cast, refuse_overflow
from .layer.quantize import explain_failures, quantize_layer
from .layer.task import QuantizedLayer
from .notices import Notice, notice
from .planning.builder import make_plan
from .planning.candidates import Evaluator, make_task
from .planning.loading import check_source
from .planning.mixed_precision import settle_plan
from .planning.plan import KeptTensor, LayerPlan, Plan
from .recipe import AUTO, OFF, Recipe
from .reports.entries import KeptReport, LayerReport
from .reports.progress import Cancel, OnProgress, Progress
from .reports.provenance import Provenance, build_header
from .reports.report import Report
from .seeds import layer_seed
from .text import shortened
from .version import versions

PENDING_HASH = "0" * 64
"""Holds the place of the source's hash, which is known when the last tensor has been read."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one run."""

    recipe: Recipe
    device: str = "cpu"
    """Where layers are computed."""
    statistics: Statistics = field(default_factory=dict)
    """What a calibration knows of the layers' inputs."""
    on_progress: OnProgress | None = None
    """Called before the first layer and after each."""
    cancel: Cancel | None = None
    """Asked often, also within a layer; True stops the run."""
    force: bool = False
    """Quantize also what ComfyUI would not load: for those who load it with code of their own."""
    is_loaded_model: bool = False
    """The source is a model that ComfyUI has loaded, so that its names are ComfyUI's own."""

    def check_cancelled(self) -> None:
        """Raise Cancelled if the caller asked to stop."""
        if self.cancel is not None and self.cancel():
            raise Cancelled("Stopped on request; nothing was written.")


def quantize(source: Source, sink: Sink, run: Run) -> Report:
    """Quantize every tensor of ``source`` into ``sink``; each is read once, in the source's order.

    Raises:
        UnloadableError: ComfyUI would not read quantized layers under these names, and ``run`` does not force it.
        AlreadyQuantizedError: the source holds quantized layers, and the recipe does not ask to dequantize them. INT8
            ConvRot layers are converted to formats with the same rotation (`Recipe.conversion_rotation`).
        ProfileError: the profile or the calibration is not this model's, or no layer would be quantized.
        RecipeError: the recipe asks for what cannot be had, such as a target that no choice of formats meets.
        LayerError: a weight cannot be quantized, or a tensor not be held in its planned dtype.
        CheckpointError: the source cannot be read, or the sink not be written or not as planned.
        Cancelled: ``run.cancel`` asked to stop.
    """
    warnings = () if run.is_loaded_model else check_source(source, force=run.force)
    floats = as_float(source, run.recipe.dequantize, rotation=run.recipe.conversion_rotation)
    plan = plan_run(floats, run)
    plan = replace(plan, warnings=(*warnings, *list_conversions(floats, plan, run.recipe)))
    with sink.open(plan.layout, _header(plan, floats, run, PENDING_HASH)) as output, torch.no_grad():
        report = _Execution(run, plan, floats, output).execute()
        run.check_cancelled()
        verify = partial(verify_planned, layout=plan.layout, markers=plan.markers)
        output.commit(_header(plan, floats, run, floats.sha256()), verify)
    return report


def list_conversions(source: Source, plan: Plan, recipe: Recipe) -> list[Notice]:
    """What the user should know of a source whose quantized layers are converted without being asked to."""
    if recipe.dequantize or not isinstance(source, DequantizedSource):
        return []
    return [notice("converted", layers=len(source.dequantized & plan.layers.keys()))]


def plan_run(source: Source, run: Run) -> Plan:
    """The plan of a run, with everything measured that its recipe leaves to measurement. Errors as in `quantize`."""
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
        device=run.device,
        check_cancelled=run.check_cancelled,
        by_sensitivity=all(known.sensitivity is not None for known in inputs),
    )
    return settle_plan(plan, source, evaluator)


def _header(plan: Plan, source: Source, run: Run, source_sha256: str | None) -> dict[str, str]:
    provenance = Provenance(recipe=run.recipe.to_dict(), source_sha256=source_sha256)
    return build_header(source.metadata, plan.markers, provenance, prefix=plan.prefix)


@dataclass(frozen=True)
class _Execution:
    """Carries out a plan."""

    run: Run
    plan: Plan
    source: Source
    output: Output

    def execute(self) -> Report:
        started = time.perf_counter()
        report = self._new_report()
        self._announce(report)
        for name, entry in self.plan.entries.items():
            self.run.check_cancelled()
            if isinstance(entry, LayerPlan):
                with explain_failures(entry.name, entry.shape, self.run.device):
                    report.layers.append(self._quantize(entry))
                self._announce(report)
            elif isinstance(entry, KeptTensor):
                report.kept.append(_kept_report(entry))
                if name not in self._corrected_biases:
                    self._keep(entry)
        report.seconds = time.perf_counter() - started
        return report

    def _new_report(self) -> Report:
        return Report(
            profile=self.plan.profile,
            certain=self.plan.certain,
            recipe=self.run.recipe.to_dict(),
            versions=versions(),
            removed={name: entry.reason for name, entry in self.plan.removed.items()},
            notes=_notes(self.plan, self.run),
            precision=self.plan.size_curve,
        )

    def _keep(self, entry: KeptTensor) -> None:
        if entry.dtype == entry.source.dtype:
            self.output.copy(entry.name, self.source)
        else:
            self.output.write(entry.name, cast(entry.name, self.source.read(entry.name), entry.dtype))

    def _quantize(self, layer: LayerPlan) -> LayerReport:
        weight = self.source.read(layer.name + WEIGHT)
        self._refuse_mismatch(layer, weight)
        run = self.run
        result = quantize_layer(make_task(layer, weight, run.recipe, run.device, run.check_cancelled))
        for suffix, tensor in layer.format.pack(result.codes, result.scale).items():
            refuse_overflow(layer.name, tensor, layer.format)
            self.output.write(f"{layer.name}.{suffix}", tensor.to(weight.device))
        self.output.write(layer.name + SUFFIX, layer.marker.to_tensor())
        if layer.input_scale is not None:
            self.output.write(f"{layer.name}.input_scale", torch.tensor(layer.input_scale, dtype=torch.float32))
        if layer.name in self._input_means:
            self._correct_bias(layer, weight, result)
        return _layer_report(layer, result)

    def _refuse_mismatch(self, layer: LayerPlan, weight: Tensor) -> None:
        """Raise ProfileError, naming every layer with another weight than the calibrated one, if this layer has one."""
        if layer.inputs.fits(weight):
            return
        layers = self.plan.layers
        wrong = [other.name for key, other in layers.items() if not other.inputs.fits(self.source.read(key))]
        raise ProfileError(
            f"The calibration is of another model: {len(wrong)} of {len(layers)} layers have other weights than those "
            f"that were calibrated ({shortened(wrong)}); record it again with this model."
        )

    @cached_property
    def _input_means(self) -> Mapping[str, Tensor]:
        """The mean input, float32 ``[K]``, of every layer whose bias is corrected."""
        if self.run.recipe.bias_correction == OFF:
            return {}
        biased = [layer for layer in self.plan.layers.values() if f"{layer.name}.bias" in self.plan.kept]
        means = ((layer.name, self._input_mean(layer)) for layer in biased)
        return {name: mean for name, mean in means if mean is not None}

    @cached_property
    def _corrected_biases(self) -> frozenset[str]:
        return frozenset(f"{layer}.bias" for layer in self._input_means)

    def _input_mean(self, layer: LayerPlan) -> Tensor | None:
        mean = layer.inputs.mean
        if mean is not None or self.run.recipe.bias_correction == "measured":
            return mean
        generator = torch.Generator().manual_seed(layer_seed(layer.name, self.run.recipe.seed))
        return bias.synthetic_mean(layer.shape[1], generator)

    def _correct_bias(self, layer: LayerPlan, weight: Tensor, result: QuantizedLayer) -> None:
        name = f"{layer.name}.bias"
        old, mean = self.source.read(name), self._input_means[layer.name]
        rounded = dequantize_layer(result.codes, result.scale, layer.format, layer.group, layer.shape)
        error = rounded - weight.to(rounded.device, torch.float32)
        corrected = bias.correct(name, old.to(rounded.device), error, mean.to(rounded.device))
        self.output.write(name, cast(name, corrected.to(old.device), self.plan.kept[name].dtype))

    def _announce(self, report: Report) -> None:
        if self.run.on_progress is None:
            return
        layers, done = list(self.plan.layers.values()), len(report.layers)
        sizes = [torch.Size(layer.shape).numel() for layer in layers]
        progress = Progress(
            done=done,
            total=len(layers),
            weights_done=sum(sizes[:done]),
            weights_total=sum(sizes),
            next_layer=layers[done].name if done < len(layers) else None,
            last=report.layers[-1] if report.layers else None,
        )
        self.run.on_progress(progress)


def _notes(plan: Plan, run: Run) -> list[Notice]:
    """What was asked for and could not be done, and what was assumed."""
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
    return notes


def _layer_report(layer: LayerPlan, result: QuantizedLayer) -> LayerReport:
    return LayerReport(
        name=layer.name,
        shape=layer.shape,
        format=layer.format.name,
        group=layer.group,
        bytes_before=layer.source.nbytes,
        bytes_after=layer.nbytes,
        errors=result.errors,
        reason=layer.reason,
        notes=(*layer.notes, *result.notes),
    )


def _kept_report(entry: KeptTensor) -> KeptReport:
    return KeptReport(
        name=entry.name,
        shape=entry.source.shape,
        dtype=str(entry.dtype).removeprefix("torch."),
        bytes_before=entry.source.nbytes,
        bytes_after=entry.nbytes,
        reason=entry.reason,
        source=entry.origin,
    )
