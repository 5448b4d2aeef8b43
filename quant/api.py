"""The engine's public functions: quantize a file, a state dict or one tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from .calibration.statistics import Statistics
from .engine import Run
from .files import CheckpointWriter, open_checkpoint, refuse_same_file
from .files.dequantized import as_float
from .files.sinks import FileSink, StateDictSink
from .files.sources import StateDictSource
from .files.tensors import WEIGHT
from .formats import marker
from .planning.plan import Plan, make_plan
from .recipe import Recipe
from .reports.progress import Cancel, OnProgress
from .reports.provenance import PROVENANCE_KEY
from .reports.report import Report
from .version import VERSION

NO_HASH = "0" * 64
"""Holds the place of the source's hash, which is known when the last tensor has been read."""


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    device: str = "cpu",
    statistics: Statistics | None = None,
    progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Report:
    """Quantize a checkpoint (``.safetensors``, or ``.safetensors.index.json`` with its shards) into one file.

    Tensors are read, quantized and written one at a time; the target appears whole or not at all, and the same call
    gives the same bytes. ``statistics`` holds what is known of the layers' inputs. ``progress`` is called after each
    layer; ``cancel`` is asked often, also within a layer, and stops the run by returning True.

    Raises CheckpointError, AlreadyQuantizedError, ProfileError, LayerError, or Cancelled; each leaves no target behind.
    """
    recipe = recipe or Recipe()
    run = Run(recipe, device, statistics or {}, progress, cancel)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source))
        refuse_same_file(checkpoint.paths, target)
        floats = as_float(checkpoint, recipe.dequantize)
        plan = run.plan(floats)
        metadata = file_metadata(floats.metadata, plan.markers, recipe, NO_HASH)
        writer = stack.enter_context(CheckpointWriter(target, plan.layout, metadata))
        report = run.execute(plan, floats, FileSink(writer))
        writer.commit(file_metadata(floats.metadata, plan.markers, recipe, checkpoint.sha256()))
    return report


def quantize_state_dict(
    tensors: Mapping[str, Tensor],
    recipe: Recipe | None = None,
    *,
    device: str = "cpu",
    statistics: Statistics | None = None,
    progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """Quantize a state dict; gives a new one as ComfyUI loads it, markers included, and the report.

    What stays as it is shares memory with ``tensors``. Parameters and errors as in `quantize_file`.
    """
    recipe = recipe or Recipe()
    run = Run(recipe, device, statistics or {}, progress, cancel)
    source = as_float(StateDictSource(tensors), recipe.dequantize)
    sink = StateDictSink()
    report = run.execute(run.plan(source), source, sink)
    return sink.tensors, report


def quantize_tensor(
    weight: Tensor, recipe: Recipe | None = None, *, name: str = "layer"
) -> tuple[dict[str, Tensor], Tensor]:
    """Quantize one weight ``[N, K]``: its layer's tensors by suffix, and the float32 ``[N, K]`` that they stand for.

    Raises LayerError for non-finite weights and ProfileError for a shape that the format cannot take.
    """
    tensors, _ = quantize_state_dict({f"{name}{WEIGHT}": weight}, recipe or Recipe(profile="generic"))
    floats = as_float(StateDictSource(tensors), dequantize=True, dtype=torch.float32)
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items()}, floats.read(f"{name}{WEIGHT}")


def plan_file(source: str | os.PathLike[str], recipe: Recipe | None = None) -> Plan:
    """What `quantize_file` would do, from the header alone; mixed precision is settled by measurement, so not here."""
    recipe = recipe or Recipe()
    with open_checkpoint(source) as checkpoint:
        return make_plan(as_float(checkpoint, recipe.dequantize).tensors, recipe)


def file_metadata(
    source: Mapping[str, str], markers: Mapping[str, marker.Marker], recipe: Recipe, source_sha256: str
) -> dict[str, str]:
    """The header's text fields: the source's own, the markers of all layers, and how the file was made."""
    made = {"version": VERSION, "recipe": recipe.to_dict(), "source_sha256": source_sha256}
    return dict(source) | {
        marker.HEADER_KEY: marker.to_header(markers),
        PROVENANCE_KEY: json.dumps(made, sort_keys=True),
    }
