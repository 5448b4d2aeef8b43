"""A MODEL or CLIP as something to quantize: the weights of its parts, and how to build it again with quantized ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...quant import Recipe, Report
from ...quant.calibration.calibration import Calibration
from ...quant.reports.measurement import Measurement
from ...quant.reports.provenance import Provenance
from ...quant.reports.report import merge_reports
from ..host.bindings import refuse_bound
from ..host.compiled import refuse_float_copies
from ..host.encoders import find_runnable_parts, read_part_tensors, rebuild_clip
from ..host.encoding import part_prefixes, select_part
from ..host.merging import Patches, WeightPatches, drop_patches, find_patches, merge_on_read, refuse_other_patches
from ..host.origin import (
    MODEL,
    PREFIX,
    attach_measurements,
    read_diffusion_tensors,
    read_origin,
    read_original_tensors,
    read_source_dtypes,
    stamp_source,
)
from ..host.rebuilding import rebuild_model
from ..host.weights import LoadedWeights
from .patch_notes import describe_merged, note_patches
from .quantize import Result

Tensors = Mapping[str, Tensor]
Rebuild = Callable[[Mapping[str, Tensors], Patches, Provenance], Any]
"""Builds a MODEL or CLIP with quantized tensors of each part, without the patches that are merged into them."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A diffusion model, or one encoder of a CLIP."""

    weights: LoadedWeights
    calibration: Calibration | None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A MODEL or CLIP to quantize."""

    parts: Mapping[str, Part]
    """By the name of the encoder; a diffusion model has the name ``model``."""
    stamp: str
    """Identifies the file; empty: unknown."""
    weight_only: bool
    """ComfyUI dequantizes the weights to run it, whatever the format: text encoders."""
    other_bytes: int = 0
    """Of the encoders beside the parts, which stay as they are."""
    merges: bool
    """Whether patches are merged before quantizing."""
    rebuild: Rebuild
    patches: Patches = field(default_factory=dict)
    """All patches, by the weight's name in the report."""

    @property
    def largest(self) -> Part:
        """The part that decides a recommendation for all."""
        return max(self.parts.values(), key=lambda part: sum(spec.nbytes for spec in part.weights.tensors.values()))

    def finish(self, results: Mapping[str, Result], recipe: Recipe) -> tuple[Any, Report]:
        """The quantized MODEL or CLIP, and the report of all its parts.

        Args:
            results: Of each part.
            recipe: Of the provenance.
        """
        report = merge_reports({name: result.report for name, result in results.items()})
        note_patches(report, self.patches, recipe, merged=self.merges)
        merged = self.patches if self.merges else {}
        provenance = Provenance(recipe=recipe.to_dict(), merged_first=describe_merged(merged))
        rebuilt = self.rebuild({name: result.tensors for name, result in results.items()}, merged, provenance)
        measurements = {name: self._measure(name, result, report) for name, result in results.items()}
        attach_measurements(getattr(rebuilt, "patcher", rebuilt), measurements)
        return rebuilt, report

    def _measure(self, name: str, result: Result, whole: Report) -> Measurement:
        """The figures of a part, with the warnings of the whole."""
        calibration = self.parts[name].calibration
        return Measurement.of(result.report, calibration and calibration.digest, whole.notes)


def load_model(model: Any, calibration: Calibration | None, merge_loras: bool) -> Loaded:
    """Read a MODEL's weights.

    Raises:
        QuantError: if the model cannot be quantized, or the calibration was recorded with other patches.
    """
    refuse_float_copies(model)
    refuse_bound(model)
    tensors = read_diffusion_tensors(read_origin(model))
    patches = find_patches(model, tensors, PREFIX)
    merged = patches if merge_loras else {}
    refuse_other_patches(calibration, merged)
    weights = merge_on_read(tensors, read_source_dtypes(model), merged)

    def rebuild(tensors: Mapping[str, Tensors], merged: Patches, provenance: Provenance) -> Any:
        rest = drop_patches(model, (patched.key for patched in merged.values()))
        return rebuild_model(rest, tensors[MODEL], provenance)

    return Loaded(
        parts={MODEL: Part(weights=weights, calibration=calibration)},
        stamp=stamp_source(model),
        weight_only=False,
        merges=merge_loras,
        rebuild=rebuild,
        patches=patches,
    )


def load_clip(clip: Any, calibration: Calibration | None, merge_loras: bool) -> Loaded:
    """Read the weights of the encoders of a CLIP that ComfyUI runs quantized.

    Raises:
        QuantError: if there is none, or a calibration was recorded with other patches.
    """
    runnable = find_runnable_parts(clip)
    refuse_bound(clip.patcher)
    dtypes = read_source_dtypes(clip.patcher)
    parts, patches = dict[str, Part](), dict[str, WeightPatches]()
    for encoder, prefix in part_prefixes(runnable).items():
        tensors = read_part_tensors(clip, encoder)
        found = find_patches(clip.patcher, tensors, encoder.prefix)
        merged = found if merge_loras else {}
        share = calibration and select_part(calibration, encoder)
        refuse_other_patches(share, merged)
        parts[encoder.name] = Part(weights=merge_on_read(tensors, dtypes, merged), calibration=share)
        patches |= {prefix + name: patched for name, patched in found.items()}
    kinds = {encoder.name: encoder.kind for encoder in runnable}
    prefixes = tuple(encoder.prefix for encoder in runnable)
    others = [t for key, t in read_original_tensors(read_origin(clip.patcher)).items() if not key.startswith(prefixes)]

    def rebuild(tensors: Mapping[str, Tensors], merged: Patches, provenance: Provenance) -> Any:
        rest = clip.clone()
        rest.patcher = drop_patches(clip.patcher, (patched.key for patched in merged.values()))
        return rebuild_clip(rest, tensors, kinds, provenance)

    return Loaded(
        parts=parts,
        stamp=stamp_source(clip.patcher),
        other_bytes=sum(tensor.nbytes for tensor in others),
        weight_only=True,
        merges=merge_loras,
        rebuild=rebuild,
        patches=patches,
    )
