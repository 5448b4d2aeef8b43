"""From a loaded model's weights and a recipe to quantized tensors, taken from the disk cache where they are in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import comfy.utils
import folder_paths
from torch import Tensor

from ...quant import Recipe, Report
from ...quant.api import file_metadata
from ...quant.calibration.file import Calibration
from ...quant.engine import Run
from ...quant.errors import CheckpointError
from ...quant.files import CheckpointWriter
from ...quant.files.dequantized import as_float
from ...quant.files.sinks import FileSink, StateDictSink
from ..host import running
from ..host.registration import refuse_unloadable
from ..host.weights import LoadedWeights
from ..page import live
from .cache import Cache


@dataclass(frozen=True)
class Result:
    """kept: the tensors were found on disk, and nothing was rounded."""

    tensors: Mapping[str, Tensor]
    report: Report
    kept: bool


def cache() -> Cache:
    return Cache(os.path.join(folder_paths.get_user_directory(), "calibrated_rounding", "cache"))


def quantize_weights(
    weights: LoadedWeights,
    stamp: str,
    recipe: Recipe,
    device_choice: str,
    node_id: str | None,
    calibration: Calibration | None = None,
) -> Result:
    """Quantize a loaded model's weights. ``stamp`` identifies their file; without one, every value is hashed.

    Raises QuantError before any work where the host could not run the result.
    """
    refuse_unloadable(recipe)
    device, store = running.device_name(device_choice), cache()
    live.begin(node_id)
    digest = weights.digest(quick=bool(stamp), check_cancelled=running.stop_if_interrupted)
    calibrated = "" if calibration is None else f" {calibration.digest}"
    path = store.path(f"{stamp} {digest}{calibrated}", recipe, device)
    entry = store.find(path)
    if entry is not None:
        return Result(comfy.utils.load_torch_file(str(entry.path)), entry.report, kept=True)
    sizes = (spec.shape[0] * spec.shape[1] for spec in weights.tensors.values() if len(spec.shape) == 2)
    running.make_room(device, max(sizes, default=0))
    made = running.run(
        lambda progress, cancel: _make(weights, Run(recipe, device, calibration or {}, progress, cancel), path), node_id
    )
    if isinstance(made, Result):
        return made
    entry = store.complete(path, made)
    return Result(comfy.utils.load_torch_file(str(entry.path)), entry.report, kept=False)


def _make(weights: LoadedWeights, run: Run, path: os.PathLike[str]) -> Report | Result:
    """Write the quantized tensors to ``path``; where the disk has no room for them, keep them in memory."""
    source = as_float(weights, run.recipe.dequantize)
    plan = run.plan(source)
    metadata = file_metadata({}, plan.markers, run.recipe, "")
    with ExitStack() as stack:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            writer = stack.enter_context(CheckpointWriter(path, plan.layout, metadata))
        except (CheckpointError, OSError) as error:
            sink = StateDictSink()
            report = run.execute(plan, source, sink)
            report.notes.append(f"The result was not kept on disk: {error}")
            return Result(sink.tensors, report, kept=False)
        report = run.execute(plan, source, FileSink(writer))
        run.check_cancelled()
        writer.commit()
    return report
