"""ComfyUI's folders: where models are listed, and where results are written."""

from __future__ import annotations

import os
from functools import lru_cache
from itertools import count
from pathlib import Path

import folder_paths

from ...quant import QuantError
from ...quant.reports.provenance import holds_provenance

FOLDERS = ("diffusion_models", "text_encoders", "checkpoints")
"""Kinds of model folders that the node Quantize reads from."""

OUTPUT_NAMES = {"text_encoders": "clip"}
"""Kind of model folder -> folder of the output folder that ComfyUI lists with it, where the two names differ."""

SUFFIXES = (".safetensors", ".sft")

CALIBRATIONS = "calibrations"
"""The folder of the output folder that holds calibrations."""


def choose_output_path(filename_prefix: str) -> Path:
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


def find_listed_name(path: Path, kind: str) -> str | None:
    """The name under which the stock loaders for a kind of model list the file at ``path``; None if they do not."""
    folders = (os.path.abspath(folder) for folder in folder_paths.get_folder_paths(kind))
    inside = next((folder for folder in folders if path.is_relative_to(folder)), None)
    return None if inside is None else os.path.relpath(path, inside)


def list_model_files() -> list[str]:
    """The safetensors files of `FOLDERS`, as ``folder/name``."""
    return [f"{folder}/{name}" for folder in FOLDERS for name in list_models(folder)]


def list_any_files() -> list[str]:
    """All model files of `FOLDERS`, GGUF files included, as ``folder/name``."""
    return [f"{folder}/{name}" for folder in FOLDERS for name in (*_listed(folder), *_find_gguf(folder))]


def _listed(folder: str) -> list[str]:
    return list(folder_paths.get_filename_list(folder))


def _find_gguf(folder: str) -> list[str]:
    """The GGUF files of one kind of model folder, which ComfyUI itself does not list."""
    roots = (Path(root) for root in folder_paths.get_folder_paths(folder))
    found = {str(path.relative_to(root)) for root in roots for path in root.rglob("*.gguf")}
    return sorted(found - set(_listed(folder)))


def find_any_file(choice: str) -> str:
    """The full path of one of `list_any_files`.

    Raises:
        QuantError: if there is no such file.
    """
    folder, _, name = choice.partition("/")
    path = folder_paths.get_full_path(folder, name) if folder in FOLDERS and name else None
    if path is None:
        raise QuantError(f"There is no model file '{choice}'; it was moved or deleted.")
    return path


def list_recipe_files() -> list[str]:
    """The files of `list_model_files` that seem to hold a recipe."""
    return [choice for choice in list_model_files() if _holds_recipe(find_any_file(choice))]


def _holds_recipe(path: str) -> bool:
    try:
        stat = os.stat(path)
    except OSError:
        return False
    return _look(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _look(path: str, mtime_ns: int, size: int) -> bool:
    """Read once for each state of the file: ComfyUI asks for lists often."""
    return holds_provenance(path)


def list_models(folder: str) -> list[str]:
    """The safetensors files of one kind of model folder."""
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(SUFFIXES)]


def find_model(choice: str) -> tuple[str, str]:
    """The kind of folder and the full path of one of `list_model_files`.

    Raises:
        QuantError: if there is no such file.
    """
    return choice.partition("/")[0], find_any_file(choice)


def list_calibrations() -> list[str]:
    """The safetensors files below `CALIBRATIONS`, by their names there."""
    folder = _calibrations_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


def find_calibration(name: str) -> Path:
    """The full path of one of `list_calibrations`.

    Raises:
        QuantError: if there is no such file.
    """
    if name not in list_calibrations():
        raise QuantError(f"There is no calibration '{name}' in {_calibrations_folder()}; it was moved or deleted.")
    return _calibrations_folder() / name


def name_calibration(path: Path) -> str | None:
    """The name of one of `list_calibrations`, by its full path; None for a path elsewhere."""
    folder = _calibrations_folder()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None


def _calibrations_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / CALIBRATIONS
