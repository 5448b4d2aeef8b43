"""From a loaded model's weights and a recipe to quantized tensors, taken from the disk cache where they are in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy.utils
import folder_paths
from torch import Tensor

from ...quant import Recipe, Report
from ...quant.calibration.calibration import Calibration
from ...quant.engine import quantize, refuse_impossible
from ...quant.errors import CheckpointError
from ...quant.files.sinks import FileSink, Output, StateDictSink
from ...quant.files.tensors import Layout
from ...quant.finished import FinishedLayers
from ...quant.layer.memory import largest_peak
from ...quant.notices import notice
from ...quant.planning.plan import Plan
from ...quant.run import Run
from ...quant.workers.workers import Workers
from ..host import running
from ..host.registration import refuse_unloadable
from ..host.weights import LoadedWeights
from ..page import durations, live
from .cache import Cache
from .measured import find_figures


@dataclass(frozen=True)
class Result:
    tensors: Mapping[str, Tensor]
    report: Report
    from_disk: bool
    """The tensors were in the cache, and nothing was rounded."""


def cache() -> Cache:
    return Cache(os.path.join(folder_paths.get_user_directory(), "calibrated_rounding", "cache"))


def layer_folder() -> Path:
    """Where finished layers wait for the run that follows an interrupted one."""
    return Path(folder_paths.get_user_directory(), "calibrated_rounding", "layers")


def identify_source(weights: LoadedWeights, stamp: str, calibration: Calibration | None) -> str:
    """A text that is the same for the same weights and calibration. Arguments as `quantize_weights`."""
    digest = weights.digest(quick=bool(stamp), check_cancelled=running.stop_if_interrupted)
    return f"{stamp} {digest}" + ("" if calibration is None else f" {calibration.digest}")


def quantize_weights(
    weights: LoadedWeights,
    stamp: str,
    recipe: Recipe,
    device_choice: str,
    node_id: str | None,
    calibration: Calibration | None = None,
    plan: Plan | None = None,
) -> Result:
    """Quantize a loaded model's weights.

    Args:
        weights: of the model.
        stamp: identifies the model's file; empty: every value is hashed.
        recipe: the settings.
        device_choice: one of `running.list_choices`.
        node_id: of the node that shows the progress.
        calibration: of this model.
        plan: as for `engine.quantize`.

    Raises:
        QuantError: before any work where ComfyUI could not run the result; else as `engine.quantize`.
    """
    refuse_unloadable(recipe)
    refuse_impossible(weights, recipe, calibration or {})
    devices, store = running.choose_devices(device_choice), cache()
    live.begin(node_id)
    source = identify_source(weights, stamp, calibration)
    path = store.path(source, recipe, ",".join(devices))
    entry = store.find(path)
    if entry is not None:
        return Result(comfy.utils.load_torch_file(str(entry.path)), entry.report, from_disk=True)
    running.make_room(devices, largest_peak(weights.tensors, recipe, calibration or {}))
    sink = _CacheSink(path)
    report = running.run_engine(
        lambda progress, cancel: quantize(
            weights,
            sink,
            Run(
                recipe=recipe,
                workers=Workers(devices),
                statistics=calibration or {},
                on_progress=progress,
                cancel=cancel,
                finished=FinishedLayers(layer_folder()),
                measured=find_figures(source, recipe, devices),
                is_loaded_model=True,
            ),
            plan,
        ),
        node_id,
        live.begin(node_id),
    )
    durations.remember(recipe, devices, [layer.shape for layer in report.layers], report.seconds)
    if sink.obstacle:
        report.notes.append(notice("not_kept_on_disk", reason=sink.obstacle))
        return Result(sink.memory.tensors, report, from_disk=False)
    entry = store.complete(path, report)
    return Result(comfy.utils.load_torch_file(str(entry.path)), entry.report, from_disk=False)


class _CacheSink:
    """Writes to a file of the cache; where the disk has no room for it, collects in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.memory = path, StateDictSink()
        self.obstacle = ""
        """Why the file could not be made; empty where it could."""

    @contextmanager
    def open(self, layout: Layout, metadata: Mapping[str, str]) -> Iterator[Output]:
        with ExitStack() as stack:
            output: Output = self.memory
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(FileSink(self.path).open(layout, metadata))
            except (CheckpointError, OSError) as error:
                self.obstacle = str(error)
            yield output
