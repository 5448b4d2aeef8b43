"""The contents of saved files: tensors and header fields; and notices for loading the file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy.cli_args import args
from torch import Tensor

from ...quant import QuantError
from ...quant.files import CheckpointWriter
from ...quant.files.verification import verify_layers
from ...quant.formats import BLOCKWISE, pack_notice
from ...quant.formats.marker import SUFFIX, Marker, from_header
from ...quant.layer.overflow import cast
from ...quant.notices import Notice, notice
from ...quant.reports.inspection import inspect_file
from ...quant.reports.model_card import write_model_card
from ...quant.reports.provenance import Provenance, build_header
from ..host import registration
from ..host.folders import CALIBRATIONS, OUTPUT_NAMES, find_listed_name, name_calibration
from ..host.origin import read_provenance, read_source_names
from ..host.weights import prefer_dtype
from ..page.saved import Loader, SavedFile
from .naming import fill_name, find_model_name, make_words, name_model

LOADERS: Mapping[str, tuple[str, str]] = {
    "diffusion_models": ("UNETLoader", "unet_name"),
    "text_encoders": ("CLIPLoader", "clip_name"),
    "checkpoints": ("CheckpointLoaderSimple", "ckpt_name"),
    CALIBRATIONS: ("CalibratedRoundingLoadCalibration", "file"),
}
"""Kind of file -> the node that loads it and the widget that names the file."""

BLOCKWISE_LOADER = ("CalibratedRoundingLoadBlockwiseModel", "file")
"""Loads diffusion models that ComfyUI's own loader cannot be taught to load."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtypes: Mapping[str, torch.dtype]
) -> None:
    """Write a new file, whole or not at all.

    Args:
        path: The file.
        tensors: On any device; ComfyUI's own may be merged with their patches only when they are written.
        metadata: The header's text fields.
        dtypes: Of kept tensors, by name: ComfyUI holds them in the dtype that it computes in.

    Raises:
        QuantError: if a value overflows in the dtype of the file, or a quantized layer is not as ComfyUI loads it.
    """
    tensors = {name: _canonical(name, tensor) for name, tensor in tensors.items()}
    written = {name: prefer_dtype(tensor.dtype, dtypes.get(name)) for name, tensor in tensors.items()}
    layout = {name: (written[name], tuple(t.shape)) for name, t in tensors.items()}
    with CheckpointWriter(path, layout, metadata, overwrite=False) as writer:
        for name, tensor in tensors.items():
            # Not cpu(): ComfyUI's lazily patched tensors do their work in to().
            writer.write(name, cast(name, tensor.to("cpu"), written[name]))
        writer.commit(verify=verify_layers)


def _canonical(name: str, tensor: Tensor) -> Tensor:
    """A marker or scale as the engine stores it: ComfyUI writes other JSON, and other dtypes for exponents."""
    if name.endswith(SUFFIX):
        return Marker.from_tensor(name.removesuffix(SUFFIX), tensor.to("cpu")).to_tensor()
    return tensor.view(torch.uint8) if tensor.dtype == getattr(torch, "float8_e8m0fnu", None) else tensor


def make_header(
    tensors: Mapping[str, Tensor], provenance: Provenance | None, source: Mapping[str, str], patches: int
) -> dict[str, str]:
    """The header's text fields: the source file's own, the markers of all layers, and the provenance.

    Args:
        tensors: The tensors that are saved.
        provenance: Of these tensors; None: unknown.
        source: The text fields of the source file's header.
        patches: Number of patches, such as LoRAs, that are merged into them.

    Raises:
        QuantError: if no tensor is quantized.
    """
    markers = {
        key.removesuffix(SUFFIX): Marker.from_tensor(key.removesuffix(SUFFIX), tensor.to("cpu"))
        for key, tensor in tensors.items()
        if key.endswith(SUFFIX)
    }
    if not markers:
        raise QuantError("Nothing in this model is quantized; connect the output of a quantize node.")
    if provenance is not None:
        provenance = replace(provenance, merged_patches=provenance.merged_patches + patches)
    return build_header(source, markers, provenance)


def workflow_fields(prompt: Any, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """The graph as header fields, as stock save nodes write it; empty if the user has turned that off."""
    if args.disable_metadata:
        return {}
    fields = {} if prompt is None else {"prompt": json.dumps(prompt)}
    return fields | {key: json.dumps(value) for key, value in (extra or {}).items()}


def loading_notices(path: Path, kind: str, metadata: Mapping[str, str]) -> list[Notice]:
    """Notices for loading a file: ComfyUI's loaders do not list its folder, or it needs this pack.

    Args:
        path: The file.
        kind: The kind of model folder that its loader lists.
        metadata: The file's header fields.
    """
    listed = find_listed_name(path, kind) is not None
    unlisted = [] if listed else [notice("not_listed", folder=OUTPUT_NAMES.get(kind, kind))]
    needed = pack_notice(marker.format for marker in from_header(metadata).values())
    return unlisted if needed is None else [*unlisted, needed]


def find_words(patcher: Any, hidden: Any, several: str = "model") -> dict[str, str]:
    """The words for the tokens in a file's name.

    Args:
        patcher: Of the MODEL or CLIP that is saved.
        hidden: The node's hidden inputs.
        several: The name of a model that comes from several files.
    """
    files, provenance = read_source_names(patcher), read_provenance(patcher)
    if len(files) > 1:
        known: str | None = several
    else:
        known = name_model(files[0]) if files else find_model_name(hidden.prompt, hidden.unique_id)
    formats = () if provenance else list_formats(patcher.model.state_dict())
    return make_words(known or "model", provenance and provenance.recipe, formats)


def fill(name: str, words: Mapping[str, str], hidden: Any) -> str:
    """`fill_name` with the prompt and the workflow of a node's hidden inputs."""
    return fill_name(name, words, hidden.prompt, (hidden.extra_pnginfo or {}).get("workflow"))


def list_formats(tensors: Mapping[str, Tensor]) -> list[str]:
    """Formats of the quantized layers in a state dict, by their names in markers."""
    markers = ((key.removesuffix(SUFFIX), t) for key, t in tensors.items() if key.endswith(SUFFIX))
    formats = {Marker.from_tensor(layer, tensor.to("cpu")).format for layer, tensor in markers}
    return sorted(name for name in formats if name is not None)


def describe_file(path: Path, kind: str, formats: Collection[str] = ()) -> SavedFile:
    """A file that was written, with the loader that takes it.

    Args:
        path: The file.
        kind: One of `LOADERS`.
        formats: Formats of its layers, by their names in markers.
    """
    own = kind == "diffusion_models" and BLOCKWISE in formats and registration.needs_own_loader()
    node, widget = BLOCKWISE_LOADER if own else LOADERS[kind]
    name = name_calibration(path) if kind == CALIBRATIONS else find_listed_name(path, kind)
    card = "" if kind == CALIBRATIONS else write_model_card(inspect_file(path))
    return SavedFile.describe(path, None if name is None else Loader(node=node, widget=widget, value=name), card)
