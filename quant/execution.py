"""Carrying out a plan: tensors are read ahead, layers are quantized, results are written behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from .errors import ProfileError
from .files.sinks import Output
from .files.sources import Source
from .files.tensors import WEIGHT
from .finished import FinishedLayer, identify_layer
from .formats.dequantize import dequantize_layer
from .formats.marker import SUFFIX
from .layer import bias
from .layer.overflow import cast, refuse_overflow
from .layer.quantize import explain_failures, quantize_layer
from .layer.task import LayerTask, QuantizedLayer
from .layer.work import COPIED_BYTE, HASHED_BYTE, estimate_work
from .notices import Notice
from .pipelining import ReadAhead, WriteBehind, write_behind
from .planning.candidates import make_task
from .planning.plan import KeptTensor, LayerPlan, Plan, RemovedTensor
from .recipe import OFF
from .reports.entries import KeptReport, LayerReport
from .reports.report import Report
from .reports.tally import Tally
from .run import Run
from .seeds import layer_seed
from .text import shortened
from .version import versions
from .workers.devices import spread

WAITING_BYTES = 64 << 20
"""Bytes that are read ahead of the layer in work, and bytes that wait to be written; one tensor may have more."""


@dataclass(frozen=True)
class LoadedLayer:
    """The tensors of a layer that the source has."""

    weight: Tensor
    bias: Tensor | None
    """None where the bias is not corrected, or there is none."""


Loaded = tuple[LayerPlan | KeptTensor, LoadedLayer | None]
"""An entry with its tensors; None: a kept tensor, which the reader has handed on."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Carries out a plan, or this rank's share of it.

    Only the reader touches the source; kept tensors go through it to the output, which takes one tensor at a time.
    """

    run: Run
    plan: Plan
    source: Source
    output: Output
    _output_lock: threading.Lock = field(default_factory=threading.Lock)

    def execute(self, notes: list[Notice]) -> Report:
        """Carry the plan out, and report all of it, other ranks' layers included."""
        started, workers = time.perf_counter(), self.run.workers
        results, tally = dict[str, LayerReport | KeptReport](), self._make_tally()
        tally.start()
        with write_behind(WAITING_BYTES) as writer, self._loaded_entries(self._own_entries()) as loaded:
            quantize = partial(self._carry_out, writer=writer)
            with closing(spread(loaded, workers.devices, quantize, self.run.check_cancelled)) as finished:
                for key, result in finished:
                    results[key] = result
                    if isinstance(result, LayerReport):
                        tally.add(result)

        if workers.ranks.size > 1 and workers.ranks.rank == 0:
            self.source.sha256()  # while others compute; a process alone has hashed what it read

        def wait() -> None:
            self.run.check_cancelled()
            tally.refresh()

        return self._report(workers.merge(results, wait), notes, started)

    def _make_tally(self) -> Tally:
        weights = {layer.name: layer.shape[0] * layer.shape[1] for layer in self.plan.layers.values()}
        return Tally(weights, self.run.workers.ranks, self.run.on_progress)

    def _report(self, results: Mapping[str, LayerReport | KeptReport], notes: list[Notice], started: float) -> Report:
        ordered = [results[key] for key in self.plan.entries if key in results]
        return Report(
            profile=self.plan.profile,
            certain=self.plan.certain,
            recipe=self.run.recipe.to_dict(),
            versions=versions(),
            layers=[result for result in ordered if isinstance(result, LayerReport)],
            kept=[result for result in ordered if isinstance(result, KeptReport)],
            removed={name: entry.reason for name, entry in self.plan.removed.items()},
            notes=notes,
            seconds=time.perf_counter() - started,
            precision=self.plan.size_curve,
        )

    def _own_entries(self) -> list[LayerPlan | KeptTensor]:
        """This rank's layers and kept tensors: in the source's order, or the longest first where reading is free.

        A file that is read in order needs no second pass for its hash.
        """
        entries = {key: entry for key, entry in self.plan.entries.items() if not isinstance(entry, RemovedTensor)}
        costs = {key: self._estimate_work(entry) for key, entry in entries.items()}
        hashing = HASHED_BYTE * sum(spec.nbytes for spec in self.source.tensors.values())
        own = self.run.workers.select_own(costs, fixed=hashing)
        if self.source.path is None and len(self.run.workers.devices) > 1:
            own.sort(key=lambda key: -costs[key])
        return [entries[key] for key in own]

    def _estimate_work(self, entry: LayerPlan | KeptTensor) -> float:
        if isinstance(entry, KeptTensor):
            return COPIED_BYTE * entry.nbytes
        return estimate_work(entry.shape, self.run.recipe, entry.inputs)

    @contextmanager
    def _loaded_entries(self, entries: Sequence[LayerPlan | KeptTensor]) -> Iterator[Iterator[Loaded]]:
        """Entries with their tensors, read ahead where the source is a file.

        A state dict costs nothing to read, and a loaded model is read in the caller's thread only.
        """
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

    def _carry_out(self, loaded: Loaded, device: str, writer: WriteBehind) -> tuple[str, LayerReport | KeptReport]:
        """Finish an entry; gives its key in the plan, and its report."""
        entry, layer = loaded
        if isinstance(entry, KeptTensor):
            return entry.name, _kept_report(entry)
        assert layer is not None  # what is to be quantized was read
        with explain_failures(entry.name, entry.shape, device, self.run.recipe.rounding):
            return entry.name + WEIGHT, self._quantize(entry, layer, device, writer)

    def _quantize(self, layer: LayerPlan, loaded: LoadedLayer, device: str, writer: WriteBehind) -> LayerReport:
        finished = self._find_or_compute(layer, loaded, device)
        for name, tensor in finished.tensors.items():
            writer.submit(partial(self._write, name, tensor), tensor.nbytes, self.run.check_cancelled)
        return finished.report

    def _find_or_compute(self, layer: LayerPlan, loaded: LoadedLayer, device: str) -> FinishedLayer:
        """The layer as an interrupted run left it, or computed. Nearest rounding takes no longer than reading."""
        run, store = self.run, self.run.finished
        task = make_task(
            layer, loaded.weight, run.recipe, device, run.check_cancelled, weight_only=self.plan.weight_only
        )
        if store is None or run.recipe.rounding == "nearest":
            return self._compute(layer, loaded, task)
        key = identify_layer(layer, task, loaded.bias)
        found = store.find(key)
        if found is None:
            found = self._compute(layer, loaded, task)
            store.keep(key, found)
        return found

    def _compute(self, layer: LayerPlan, loaded: LoadedLayer, task: LayerTask) -> FinishedLayer:
        weight, result = loaded.weight, quantize_layer(task)
        tensors = layer.format.pack(result.codes, result.scale)
        written = {f"{layer.name}.{suffix}": tensor.to(weight.device) for suffix, tensor in tensors.items()}
        scales = (tensor for name, tensor in written.items() if name != layer.name + WEIGHT)
        refuse_overflow(layer.name, scales, layer.format)
        written[layer.name + SUFFIX] = layer.marker.to_tensor()
        if layer.input_scale is not None:
            written[f"{layer.name}.input_scale"] = torch.tensor(layer.input_scale, dtype=torch.float32)
        if loaded.bias is not None:
            written[f"{layer.name}.bias"] = self._correct_bias(layer, loaded.bias, weight, result)
        return FinishedLayer(written, _layer_report(layer, result))

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
