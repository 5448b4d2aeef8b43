"""Where files go and come from: names inside the output folder, and the folders that the stock loaders list."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from torch import Tensor

from ...quant import QuantError
from ...quant.files import CheckpointWriter
from ...quant.formats import pack_notice
from ...quant.formats.marker import SUFFIX, Marker, from_header
from ...quant.notices import Notice, notice
from ...quant.reports.provenance import Provenance, build_header
from ..host.models import Made

FOLDERS = ("diffusion_models", "text_encoders", "checkpoints")
"""Kinds of model folders that Quantize File reads from."""

OUTPUT_NAMES = {"text_encoders": "clip"}
"""The folder in the output folder that ComfyUI's loaders list for a kind, where it is not called like the kind."""

SUFFIXES = (".safetensors", ".sft")

CALIBRATIONS = "calibrations"
"""The folder in the output folder that holds calibrations."""


def output_file(filename_prefix: str) -> Path:
    """The next free numbered file for a prefix in the output folder, as stock save nodes name their files.

    Raises:
        QuantError: the prefix has no name in it, or leads outside the output folder.
    """
    prefix = _normalize_prefix(filename_prefix)
    try:
        folder, name, counter, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except Exception:  # get_save_image_path has no error of its own
        raise QuantError(
            f"The name '{filename_prefix}' leads outside the output folder; give a name inside it."
        ) from None
    paths = (Path(folder) / f"{name}_{number:05}_.safetensors" for number in count(counter))
    return next(path for path in paths if not os.path.lexists(path))


def _normalize_prefix(text: str) -> str:
    """ComfyUI counts files by the last part of a name, so that it must not be empty, ``.`` or ``..``."""
    if not text.isprintable():
        raise QuantError(f"The name {text!a} holds a character that no file name can have.")
    *folders, name = text.replace("\\", "/").split("/")
    if name.strip() in ("", ".", ".."):
        raise QuantError(f"'{text}' names a folder; add the name of a file to it.")
    kept = [folder for i, folder in enumerate(folders) if folder not in ("", ".") or (i == 0 and not folder)]
    return "/".join([*kept, name.strip()])


def loading_notices(path: Path, kind: str, metadata: Mapping[str, str]) -> list[Notice]:
    """What to know before loading a file: its folder is not listed by ComfyUI's loaders, or it needs this pack.

    Args:
        path: the file.
        kind: the kind of model folder that its loader lists.
        metadata: the file's header fields.
    """
    listed = any(path.is_relative_to(os.path.abspath(folder)) for folder in folder_paths.get_folder_paths(kind))
    notices = [] if listed else [notice("not_listed", folder=OUTPUT_NAMES.get(kind, kind))]
    needed = pack_notice(marker.format for marker in from_header(metadata).values())
    return notices if needed is None else [*notices, needed]


def model_files() -> list[str]:
    """Every safetensors file of `FOLDERS`, as ``folder/name``."""
    return [f"{folder}/{name}" for folder in FOLDERS for name in names(folder)]


def names(folder: str) -> list[str]:
    """Every safetensors file of one kind of model folder."""
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(SUFFIXES)]


def model_path(choice: str) -> tuple[str, str]:
    """The kind of folder and the full path of one of `model_files`."""
    folder, _, name = choice.partition("/")
    path = folder_paths.get_full_path(folder, name) if folder in FOLDERS else None
    if path is None:
        raise QuantError(f"There is no model file '{choice}'; it was moved or deleted.")
    return folder, path


def calibration_files() -> list[str]:
    """Every safetensors file below `CALIBRATIONS`, by its name there."""
    folder = _calibrations()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def calibration_path(name: str) -> Path:
    """The full path of one of `calibration_files`."""
    if name not in calibration_files():
        raise QuantError(f"There is no calibration '{name}' in {_calibrations()}; it was moved or deleted.")
    return _calibrations() / name


def _calibrations() -> Path:
    return Path(folder_paths.get_output_directory()) / CALIBRATIONS


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, which may lie anywhere or be merged with their patches only now, whole or not at all."""
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with CheckpointWriter(path, layout, metadata, overwrite=False) as writer:
        for name, tensor in tensors.items():
            # Not cpu(): the host's lazily patched tensors do their work in to().
            writer.write(name, tensor.to("cpu"))
        writer.commit()


def header(tensors: Mapping[str, Tensor], made: Made | None, source: Mapping[str, str], patches: int) -> dict[str, str]:
    """The header's text fields: the source file's, the markers of all layers, and how the file was made."""
    markers = {
        key.removesuffix(SUFFIX): Marker.from_tensor(key.removesuffix(SUFFIX), tensor.to("cpu"))
        for key, tensor in tensors.items()
        if key.endswith(SUFFIX)
    }
    if not markers:
        raise QuantError("Nothing in this model is quantized; connect the output of a quantize node.")
    provenance = None if made is None else Provenance(recipe=made.recipe.to_dict(), merged_patches=patches)
    return build_header(source, markers, provenance)


def workflow(prompt: Any, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """The graph as header fields, as stock save nodes write it; empty where the user turned that off."""
    if args.disable_metadata:
        return {}
    fields = {} if prompt is None else {"prompt": json.dumps(prompt)}
    return fields | {key: json.dumps(value) for key, value in (extra or {}).items()}
