"""Carrying out a plan: tensors are read ahead, layers are quantized one after the other, results are written behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from .errors import ProfileError
from .files.sinks import Output
from .files.sources import Source
from .files.tensors import WEIGHT
from .formats.dequantize import dequantize_layer
from .formats.marker import SUFFIX
from .layer import bias
from .layer.overflow import cast, refuse_overflow
from .layer.quantize import explain_failures, quantize_layer
from .layer.task import QuantizedLayer
from .notices import Notice
from .parallel import crew
from .pipelining import ReadAhead, WriteBehind, write_behind
from .planning.candidates import make_task
from .planning.plan import KeptTensor, LayerPlan, Plan
from .recipe import OFF
from .reports.entries import KeptReport, LayerReport
from .reports.progress import Progress
from .reports.report import Report
from .run import Run
from .seeds import layer_seed
from .text import shortened
from .version import versions

WAITING_BYTES = 64 << 20
"""Bytes that are read ahead, and bytes that wait to be written, unless one tensor alone has more."""


@dataclass(frozen=True)
class LoadedLayer:
    """The tensors of a layer that the source has."""

    weight: Tensor
    bias: Tensor | None
    """None where the bias is not corrected, or there is none."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Carries out a plan.

    Only the reader touches the source; kept tensors go through it to the output, which takes one tensor at a time.
    """

    run: Run
    plan: Plan
    source: Source
    output: Output
    _output_lock: threading.Lock = field(default_factory=threading.Lock)

    def execute(self, notes: list[Notice]) -> Report:
        started = time.perf_counter()
        report = self._new_report(notes)
        self._announce(report)
        # A GPU is driven by one thread.
        threads = crew() if torch.device(self.run.device).type == "cpu" else nullcontext()
        with threads, write_behind(WAITING_BYTES) as writer, self._loaded_entries() as loaded:
            for entry, layer in loaded:
                self.run.check_cancelled()
                if isinstance(entry, LayerPlan) and layer is not None:
                    with explain_failures(entry.name, entry.shape, self.run.device, self.run.recipe.rounding):
                        report.layers.append(self._quantize(entry, layer, writer))
                    del layer
                    self._announce(report)
                elif isinstance(entry, KeptTensor):
                    report.kept.append(_kept_report(entry))
        report.seconds = time.perf_counter() - started
        return report

    def _new_report(self, notes: list[Notice]) -> Report:
        return Report(
            profile=self.plan.profile,
            certain=self.plan.certain,
            recipe=self.run.recipe.to_dict(),
            versions=versions(),
            removed={name: entry.reason for name, entry in self.plan.removed.items()},
            notes=notes,
            precision=self.plan.size_curve,
        )

    @contextmanager
    def _loaded_entries(self) -> Iterator[Iterator[tuple[LayerPlan | KeptTensor, LoadedLayer | None]]]:
        """All layers and kept tensors in the source's order, read ahead where the source is a file.

        A state dict costs nothing to read, and a loaded model is read in the caller's thread only.
        """
        entries = [entry for entry in self.plan.entries.values() if isinstance(entry, LayerPlan | KeptTensor)]
        if self.source.path is None:
            yield ((entry, self._load(entry)) for entry in entries)
            return
        reader = ReadAhead(self._load, entries, lambda entry: entry.source.nbytes, WAITING_BYTES)
        with closing(reader.results(self.run.check_cancelled)) as results:
            yield results

    def _load(self, entry: LayerPlan | KeptTensor) -> LoadedLayer | None:
        """Read a layer, or hand a kept tensor on to the output."""
        with explain_failures(entry.name, entry.source.shape, "cpu", self.run.recipe.rounding):
            return self._load_entry(entry)

    def _load_entry(self, entry: LayerPlan | KeptTensor) -> LoadedLayer | None:
        if isinstance(entry, KeptTensor):
            if entry.name not in self._corrected_biases:
                self._keep(entry)
            return None
        weight = self.source.read(entry.name + WEIGHT)
        self._refuse_mismatch(entry, weight)
        old = self.source.read(f"{entry.name}.bias") if entry.name in self._input_means else None
        return LoadedLayer(weight, old)

    def _keep(self, entry: KeptTensor) -> None:
        if entry.dtype == entry.source.dtype:
            with self._output_lock:
                self.output.copy(entry.name, self.source)
        else:
            self._write(entry.name, cast(entry.name, self.source.read(entry.name), entry.dtype))

    def _write(self, name: str, tensor: Tensor) -> None:
        with self._output_lock:
            self.output.write(name, tensor)

    def _quantize(self, layer: LayerPlan, loaded: LoadedLayer, writer: WriteBehind) -> LayerReport:
        weight, run = loaded.weight, self.run
        task = make_task(layer, weight, run.recipe, run.device, run.check_cancelled, weight_only=self.plan.weight_only)
        result = quantize_layer(task)
        tensors = layer.format.pack(result.codes, result.scale)
        written = {f"{layer.name}.{suffix}": tensor.to(weight.device) for suffix, tensor in tensors.items()}
        scales = (tensor for name, tensor in written.items() if name != layer.name + WEIGHT)
        refuse_overflow(layer.name, scales, layer.format)
        written[layer.name + SUFFIX] = layer.marker.to_tensor()
        if layer.input_scale is not None:
            written[f"{layer.name}.input_scale"] = torch.tensor(layer.input_scale, dtype=torch.float32)
        if loaded.bias is not None:
            written[f"{layer.name}.bias"] = self._correct_bias(layer, loaded.bias, weight, result)
        for name, tensor in written.items():
            writer.submit(partial(self._write, name, tensor), tensor.nbytes, run.check_cancelled)
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

    def _correct_bias(self, layer: LayerPlan, old: Tensor, weight: Tensor, result: QuantizedLayer) -> Tensor:
        name, mean = f"{layer.name}.bias", self._input_means[layer.name]
        rounded = dequantize_layer(result.codes, result.scale, layer.format, layer.group, layer.shape)
        error = rounded - weight.to(rounded.device, torch.float32)
        corrected = bias.correct(name, old.to(rounded.device), error, mean.to(rounded.device))
        return cast(name, corrected.to(old.device), self.plan.kept[name].dtype)

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
        effect=_estimate_effect(layer, result),
    )


def _estimate_effect(layer: LayerPlan, result: QuantizedLayer) -> float | None:
    """`LayerReport.effect` of a layer."""
    sensitivity, power, output = layer.inputs.sensitivity, result.output_power, result.errors.output_w8a8
    if sensitivity is None or power is None or output is None:
        return None
    return sensitivity * power * output.error**2


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
