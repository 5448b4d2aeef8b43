"""Patches, such as LoRAs, in a report and in a file's provenance."""

from __future__ import annotations

from dataclasses import replace

from ...quant import Recipe, Report
from ...quant.files.tensors import WEIGHT
from ...quant.notices import notice
from ...quant.text import shortened
from ..host.merging import Patches


def describe_merged(patches: Patches) -> dict[str, list[str]]:
    """`Provenance.merged_first` of merged patches."""
    return {name: patched.describe() for name, patched in patches.items()}


def note_patches(report: Report, patches: Patches, recipe: Recipe, *, merged: bool) -> None:
    """State in a report what happened to patches.

    Args:
        report: Its layers are named as in ``patches``.
        patches: Of the source.
        recipe: Of the quantization. Layers that ComfyUI rounds again are a warning if codes were learned.
        merged: Whether the patches were merged before quantizing; if not, they stay on the quantized model.
    """
    if merged:
        report.notes.append(notice("patches_merged", weights=len(patches)))
        return
    layers = [layer.name for layer in report.layers if layer.name + WEIGHT in patches]
    if not layers:
        return
    mark = notice("patched")
    report.layers[:] = [
        replace(layer, notes=(*layer.notes, mark)) if layer.name + WEIGHT in patches else layer
        for layer in report.layers
    ]
    level = "warning" if recipe.learns or recipe.rounding != "nearest" else "info"
    report.notes.append(notice("patches_requantize", level, count=len(layers), layers=shortened(layers)))
