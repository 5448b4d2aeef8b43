"""The loop that carries out a plan: a source gives each tensor, a sink takes the result, a report collects what it
cost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .calibration.input_scales import input_scale
from .calibration.statistics import NOTHING_KNOWN, InputStatistics, Statistics, fingerprint
from .errors import Cancelled, ProfileError, RecipeError
from .files.sinks import Sink
from .files.sources import Source
from .files.tensors import WEIGHT, Spec
from .formats import marker, pack_note
from .formats.dequantize import dequantize_layer
from .layer import bias
from .layer.quantize import fitting, quantize_layer
from .layer.task import QuantizedLayer, Task
from .planning.candidates import Evaluator
from .planning.mixed_precision import Settling
from .planning.plan import LayerPlan, Plan, make_plan
from .recipe import AUTO, OFF, Recipe
from .reports.progress import Cancel, OnProgress, Progress
from .reports.report import KeptReport, LayerReport, Report, decibels
from .seeds import layer_seed
from .text import shortened
from .version import versions


@dataclass(frozen=True)
class Run:
    """The settings of one run. ``statistics`` holds what is known of the layers' inputs."""

    recipe: Recipe
    device: str
    statistics: Statistics
    progress: OnProgress | None
    cancel: Cancel | None

    def check_cancelled(self) -> None:
        """Called often, also within a layer. Raises Cancelled if the caller asked to stop."""
        if self.cancel is not None and self.cancel():
            raise Cancelled("Stopped on request; nothing was written.")

    def plan(self, source: Source) -> Plan:
        if self.recipe.rounding == "calibrated" and not any(
            known.rows is not None for known in self.statistics.values()
        ):
            raise RecipeError(
                "Calibrated rounding needs recorded inputs; give a calibration of this model, or choose nearest or svd."
            )
        measured = frozenset(name for name, known in self.statistics.items() if known.absmax is not None)
        plan = make_plan(source.tensors, self.recipe, measured)
        known = [self._known(layer.name, plan.prefix) for layer in plan.layers.values()]
        if self.statistics and all(inputs is NOTHING_KNOWN for inputs in known):
            raise ProfileError(
                f"The calibration is of another model: it knows the layer '{next(iter(self.statistics))}' and others, "
                "and none of those to quantize; record it again with this model."
            )
        probed = all(inputs.sensitivity is not None for inputs in known)
        evaluator = Evaluator(self.recipe, self.device, self.check_cancelled, by_sensitivity=probed)
        precision = Settling(plan, source, self.recipe, lambda name: self._known(name, plan.prefix), evaluator).settle()
        return replace(plan, precision=precision)

    @torch.no_grad()
    def execute(self, plan: Plan, source: Source, sink: Sink) -> Report:
        """Carry out the plan in the source's order, each tensor read once."""
        started = time.perf_counter()
        report = Report(plan.profile, plan.certain, self.recipe.to_dict(), versions(), removed=dict(plan.removed))
        report.precision = plan.precision
        report.notes += self._notes(plan)
        means = self._input_means(plan)
        corrected = {f"{layer}.bias" for layer in means}
        self._announce(plan, report)
        for name in source.tensors:
            self.check_cancelled()
            if name in plan.layers:
                layer = plan.layers[name]
                with fitting(layer.name, layer.shape, self.device):
                    report.layers.append(self._layer(layer, plan, source, sink, means))
                self._announce(plan, report)
            elif name in plan.kept:
                kept = plan.kept[name]
                report.kept.append(_kept_report(plan, name))
                if name in corrected:
                    continue
                if kept.dtype == kept.source.dtype:
                    sink.copy(name, source)
                else:
                    sink.write(name, source.read(name).to(kept.dtype))
        report.seconds = time.perf_counter() - started
        return report

    def _known(self, layer: str, prefix: str) -> InputStatistics:
        return next(
            (self.statistics[name] for name in (layer, layer.removeprefix(prefix)) if name in self.statistics),
            NOTHING_KNOWN,
        )

    def _refuse_mismatch(self, layer: LayerPlan, weight: Tensor, plan: Plan, source: Source) -> None:
        """Raise ProfileError, naming every layer that is not the calibrated one, if this is not it."""
        if not self._is_other(layer, weight, plan.prefix):
            return
        others = plan.layers.values()
        wrong = [other.name for other in others if self._is_other(other, source.read(other.name + WEIGHT), plan.prefix)]
        raise ProfileError(
            f"The calibration is of another model: {len(wrong)} of {len(others)} layers have other weights than those "
            f"that were calibrated ({shortened(wrong)}); record it again with this model."
        )

    def _is_other(self, layer: LayerPlan, weight: Tensor, prefix: str) -> bool:
        print_ = self._known(layer.name, prefix).fingerprint
        return print_ is not None and print_ != fingerprint(weight)

    def _layer(self, layer: LayerPlan, plan: Plan, source: Source, sink: Sink, means: dict[str, Tensor]) -> LayerReport:
        started = time.perf_counter()
        weight = source.read(layer.name + WEIGHT)
        known = self._known(layer.name, plan.prefix)
        self._refuse_mismatch(layer, weight, plan, source)
        result = quantize_layer(
            Task(layer.name, weight, layer.format, layer.group, self.recipe, known, self.device, self.check_cancelled)
        )
        for suffix, tensor in layer.format.pack(result.codes, result.scale).items():
            sink.write(f"{layer.name}.{suffix}", tensor.to(weight.device))
        sink.write(layer.name + marker.SUFFIX, marker.to_tensor(layer.marker))
        if layer.input_scale:
            sink.write(f"{layer.name}.input_scale", input_scale(self.recipe.input_scale, known, layer.format))
        if layer.name in means:
            name = f"{layer.name}.bias"
            sink.write(name, _corrected(source.read(name), weight, result, layer, means[layer.name]))
        return _layer_report(layer, result, time.perf_counter() - started)

    def _input_means(self, plan: Plan) -> dict[str, Tensor]:
        """The mean input of every layer whose bias is to be corrected."""
        if self.recipe.bias_correction == OFF:
            return {}
        biased = [layer for layer in plan.layers.values() if f"{layer.name}.bias" in plan.kept]
        means = {layer.name: self._input_mean(layer, plan.prefix) for layer in biased}
        return {name: mean for name, mean in means.items() if mean is not None}

    def _input_mean(self, layer: LayerPlan, prefix: str) -> Tensor | None:
        known = self._known(layer.name, prefix).mean
        if known is not None or self.recipe.bias_correction == "measured":
            return known
        generator = torch.Generator().manual_seed(layer_seed(layer.name, self.recipe.seed))
        return bias.synthetic_mean(layer.shape[1], generator)

    def _announce(self, plan: Plan, report: Report) -> None:
        if self.progress is None:
            return
        layers, done = list(plan.layers.values()), len(report.layers)
        sizes = [torch.Size(layer.shape).numel() for layer in layers]
        following = layers[done].name if done < len(layers) else None
        last = report.layers[-1] if report.layers else None
        self.progress(Progress(done, len(layers), sum(sizes[:done]), sum(sizes), following, last))

    def _notes(self, plan: Plan) -> list[str]:
        """What was asked for and could not be done, and what was assumed."""
        needed = pack_note(layer.format.marker for layer in plan.layers.values())
        notes = [needed] if needed else []
        if not plan.certain:
            notes.append("The model was not recognised: the generic rules were used.")
        if self.recipe.input_scale != OFF and not all(layer.input_scale for layer in plan.layers.values()):
            missing = sum(not layer.input_scale for layer in plan.layers.values())
            notes.append(
                f"No input scale was written for {missing} layers: none was measured, or the format takes none."
            )
        probed = [self._known(layer.name, plan.prefix).sensitivity is not None for layer in plan.layers.values()]
        if self.recipe.format == AUTO and any(probed) and not all(probed):
            notes.append(f"Sensitivities were not used: {probed.count(False)} layers have none.")
        known_means = any(known.mean is not None for known in self.statistics.values())
        if self.recipe.bias_correction == "measured" and not known_means:
            notes.append("No bias was corrected: no input means were measured.")
        return notes


def _corrected(old: Tensor, weight: Tensor, result: QuantizedLayer, layer: LayerPlan, mean: Tensor) -> Tensor:
    rounded = dequantize_layer(result.codes, result.scale, layer.format, layer.group, layer.shape)
    error = rounded - weight.to(rounded.device, torch.float32)
    return bias.correct(old.to(rounded.device), error, mean.to(rounded.device)).to(old.device)


def _layer_report(layer: LayerPlan, result: QuantizedLayer, seconds: float) -> LayerReport:
    output, before = result.output, result.output_nearest
    return LayerReport(
        name=layer.name,
        shape=layer.shape,
        format=layer.format.name,
        group=layer.group,
        bytes_before=layer.source.nbytes,
        bytes_after=layer.nbytes,
        error=result.error,
        sqnr_db=decibels(result.error),
        projected_error=result.projected,
        projected_nearest=result.projected_nearest,
        output_error=None if output is None else output.w8a16,
        output_nearest=None if before is None else before.w8a16,
        run_error=None if output is None else output.w8a8,
        run_nearest=None if before is None else before.w8a8,
        fell_back=result.fell_back,
        seconds=seconds,
        reason=layer.reason,
        notes=(*layer.notes, *result.notes),
    )


def _kept_report(plan: Plan, name: str) -> KeptReport:
    kept = plan.kept[name]
    after = Spec(kept.dtype, kept.source.shape)
    dtype = str(kept.dtype).removeprefix("torch.")
    return KeptReport(name, after.shape, dtype, kept.source.nbytes, after.nbytes, kept.reason, kept.origin)
