"""The engine's public functions: quantize a file, a state dict or one tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .calibration.statistics import Statistics
from .engine import list_conversions, quantize
from .files import open_checkpoint, refuse_same_file
from .files.dequantized import as_float
from .files.sinks import FileSink, StateDictSink
from .files.sources import StateDictSource
from .files.tensors import WEIGHT, is_layer
from .finished import FinishedLayers
from .planning.builder import make_plan
from .planning.loading import check_source
from .planning.plan import Plan
from .planning.size_range import refuse_unreachable
from .recipe import Recipe
from .reports.progress import Cancel, OnProgress
from .reports.report import Report
from .run import Run
from .workers.ranks import Ranks
from .workers.workers import Workers


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    device: str | Sequence[str] = "cpu",
    ranks: Ranks | None = None,
    statistics: Statistics | None = None,
    overwrite: bool = True,
    force: bool = False,
    resume: str | os.PathLike[str] | None = None,
    progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Report:
    """Quantize a checkpoint into one file.

    Tensors are read, quantized and written one at a time. The target appears whole or not at all, and the same call
    gives the same bytes.

    Args:
        source: ``.safetensors``, or ``.safetensors.index.json`` with its shards.
        target: the file to write.
        recipe: the settings; None: `Recipe`'s defaults.
        device: where layers are computed. Several devices take a layer each.
        ranks: the processes that work on the file together, from `join_ranks`; all call this function with the same
            arguments, but for the device. Each returns the whole report.
        statistics: a calibration of this model, by layer name.
        overwrite: replace a file that is there already, or appears during the run.
        force: quantize also what ComfyUI would not load as a quantized model.
        resume: a folder that keeps finished layers until the target is there, so that the same call after an
            interrupt does not compute them again; None: nothing is kept.
        progress: called before the first layer and after each.
        cancel: asked often, also within a layer; True stops the run.

    Raises:
        QuantError: one of `engine.quantize`'s; no target is left behind.
    """
    with open_checkpoint(source) as checkpoint:
        refuse_same_file(checkpoint.paths, target)
        workers = Workers((device,) if isinstance(device, str) else tuple(device), ranks or Ranks())
        run = _run(recipe, workers, statistics, force, progress, cancel)
        run = replace(run, finished=None if resume is None else FinishedLayers(Path(resume)))
        return quantize(checkpoint, FileSink(target, overwrite=overwrite, ranks=ranks), run)


def quantize_state_dict(
    tensors: Mapping[str, Tensor],
    recipe: Recipe | None = None,
    *,
    device: str | None = None,
    statistics: Statistics | None = None,
    force: bool = False,
    progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """Quantize a state dict into a new one as ComfyUI loads it, markers included.

    Kept tensors share memory with ``tensors``. Parameters and errors as in `quantize_file`, but for ``device``: without
    one, layers are computed where the first weight is.
    """
    sink, workers = StateDictSink(), Workers((device or _find_device(tensors),))
    report = quantize(StateDictSource(tensors), sink, _run(recipe, workers, statistics, force, progress, cancel))
    return sink.tensors, report


def quantize_tensor(
    weight: Tensor, recipe: Recipe | None = None, *, name: str = "layer"
) -> tuple[dict[str, Tensor], Tensor]:
    """Quantize one weight ``[N, K]``, on the device that it is on.

    Returns:
        The layer's tensors by suffix, and the float32 ``[N, K]`` that they stand for.

    Raises:
        LayerError: the weight holds NaN or infinity.
        ProfileError: the format cannot take the shape.
    """
    # One tensor is no model that ComfyUI loads, whatever it is called.
    tensors, _ = quantize_state_dict({f"{name}{WEIGHT}": weight}, recipe or Recipe(profile="generic"), force=True)
    floats = as_float(StateDictSource(tensors), dequantize=True, dtype=torch.float32)
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items()}, floats.read(f"{name}{WEIGHT}")


def plan_file(
    source: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    statistics: Statistics | None = None,
    force: bool = False,
) -> Plan:
    """Plan `quantize_file` from the header alone, without the choices that the recipe leaves to measurement.

    Raises:
        QuantError: as `quantize_file`, for what the header and the settings tell.
    """
    recipe = recipe or Recipe()
    with open_checkpoint(source) as checkpoint:
        warnings = check_source(checkpoint, force=force)
        floats = as_float(checkpoint, recipe.dequantize, rotation=recipe.conversion_rotation)
        plan = make_plan(floats.tensors, recipe, statistics)
    refuse_unreachable(plan, recipe)
    return replace(plan, warnings=(*warnings, *list_conversions(floats, plan, recipe), *plan.warnings))


def _find_device(tensors: Mapping[str, Tensor]) -> str:
    weights = (tensor for name, tensor in tensors.items() if is_layer(name, tensor.shape))
    first = next(weights, None)
    return "cpu" if first is None else str(first.device)


def _run(
    recipe: Recipe | None,
    workers: Workers,
    statistics: Statistics | None,
    force: bool,
    progress: OnProgress | None,
    cancel: Cancel | None,
) -> Run:
    return Run(
        recipe=recipe or Recipe(),
        workers=workers,
        statistics=statistics or {},
        on_progress=progress,
        cancel=cancel,
        force=force,
    )
