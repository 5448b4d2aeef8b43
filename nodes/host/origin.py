"""A loaded MODEL or CLIP as it was before any patch: its own weights, and the file that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...quant import QuantError
from ...quant.files import read_header
from ...quant.planning.profiles import recognise
from ...quant.reports.measurement import Measurement
from ...quant.reports.provenance import Provenance

PREFIX = "diffusion_model."

PROVENANCE = "calibrated_rounding"
"""Key of the attachment with a quantized model's `Provenance`, for the save nodes."""
MEASUREMENTS = "calibrated_rounding_measurements"
"""Key of the attachment with the `Measurement` of each part, by the encoder's name, or `MODEL`."""
MODEL = "model"
"""Name of the only part of a diffusion model."""
METADATA = "calibrated_rounding_metadata"
"""Key of the attachment with the header fields of the source file."""
KEPT_DTYPES = "calibrated_rounding_dtypes"
"""Key of the attachment with the dtypes that kept tensors have in a saved file."""
FILES = "calibrated_rounding_files"
"""Key of the attachment with the names of the source files."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A loaded model, and what is needed to read its own weights and to build another of its kind."""

    model: Any
    """The module that holds everything: ComfyUI's ``BaseModel``, or a text encoder's."""
    override: tuple[Any, ...]
    """The patcher's backups of what its patches have replaced: weights, buffers, objects, pinned keys."""
    hook_backup: Mapping[str, Any]
    """Backups of the weights that hooks have replaced."""
    load_device: torch.device
    """Device that ComfyUI runs the model on."""
    offload_device: torch.device
    """Device that holds the model between runs."""
    options: Mapping[str, Any]
    """The options of the loader node; empty where unknown."""


def read_origin(patcher: Any) -> Origin:
    """The origin of a MODEL's or CLIP's patcher."""
    model, override = patcher.get_clone_model_override()
    return Origin(
        model=model,
        override=override,
        hook_backup=patcher.hook_backup,
        load_device=patcher.load_device,
        offload_device=patcher.offload_device,
        options=read_loader_options(patcher),
    )


def read_original_tensors(origin: Origin) -> dict[str, Tensor]:
    """The model's weights as its checkpoint has them, whatever patches are applied now."""
    tensors: dict[str, Tensor] = dict(origin.model.state_dict())
    weights, buffers, objects = origin.override[:3]
    for name, module in objects.items():
        if isinstance(module, torch.nn.Module):
            tensors = {key: t for key, t in tensors.items() if not key.startswith(f"{name}.")}
            tensors |= module.state_dict(prefix=f"{name}.")
    backups = [(key, weight) for key, (weight, *_) in origin.hook_backup.items()]
    backups += [(key, entry.weight) for key, entry in weights.items()]
    for key, weight in [*backups, *buffers.items()]:
        tensors.update(weight.state_dict(key) if hasattr(weight, "_qdata") else {key: weight})
    return tensors


def read_diffusion_tensors(origin: Origin) -> dict[str, Tensor]:
    """The diffusion model's part of `read_original_tensors`, named without `PREFIX`.

    Raises:
        QuantError: if the model runs with another pack's operations.
    """
    if origin.model.model_config.custom_operations is not None:
        raise QuantError(
            "This model was loaded with another pack's own operations, which ComfyUI's formats do not run with; "
            "load it with Load Diffusion Model or Load Checkpoint."
        )
    tensors = read_original_tensors(origin)
    return {key.removeprefix(PREFIX): t for key, t in tensors.items() if key.startswith(PREFIX)}


def named_original_modules(origin: Origin) -> Iterator[tuple[str, torch.nn.Module]]:
    """The model's modules with their names, whatever object patches are applied now."""
    replaced = origin.override[2]
    inside = tuple(f"{name}." for name in replaced)
    # A patch may put a module of the model into a second place.
    for name, module in origin.model.named_modules(remove_duplicate=False):
        if name not in replaced and not name.startswith(inside):
            yield name, module
    for name, module in replaced.items():
        if isinstance(module, torch.nn.Module):
            yield from module.named_modules(prefix=name)


def read_loader_options(patcher: Any) -> Mapping[str, Any]:
    """The options of the loader node; empty where unknown."""
    args = (patcher.cached_patcher_init or (None, ()))[1]
    if args and isinstance(args[0], Origin):
        return args[0].options
    # A checkpoint's loader takes two, the model's and then the text encoder's.
    options = [arg for arg in args if isinstance(arg, dict)] or [{}]
    return options[-1 if patcher.is_clip else 0]


def read_source_metadata(patcher: Any) -> dict[str, str]:
    """The header fields of the one safetensors file that a MODEL or CLIP comes from; empty where unknown."""
    metadata = patcher.get_attachment(METADATA)
    if metadata is not None:
        return dict(metadata)
    paths = _find_source_files(patcher)
    try:
        return dict(read_header(paths[0]).metadata) if len(paths) == 1 else {}
    except QuantError:
        return {}


def read_source_names(patcher: Any) -> tuple[str, ...]:
    """Names of the files that a MODEL or CLIP comes from; empty where unknown."""
    names: tuple[str, ...] | None = patcher.get_attachment(FILES)
    return tuple(path.name for path in _find_source_files(patcher)) if names is None else names


def read_source_dtypes(patcher: Any) -> dict[str, torch.dtype]:
    """Dtypes of the tensors in the one safetensors file that a MODEL or CLIP comes from; empty where it is unknown.

    ComfyUI loads into the dtype that it computes in: float32 on a CPU, float16 for some models on a GPU.

    Returns:
        By name, without the model's prefix in the file.
    """
    paths = _find_source_files(patcher)
    try:
        header = read_header(paths[0]) if len(paths) == 1 else None
    except QuantError:
        return {}
    if header is None:
        return {}
    prefix = recognise({name: info.shape for name, info in header.tensors.items()}).prefix
    return {name.removeprefix(prefix): info.dtype for name, info in header.tensors.items()}


def read_kept_dtypes(patcher: Any) -> dict[str, torch.dtype]:
    """Dtypes that the kept tensors of a quantized MODEL or CLIP have in a saved file, by the model's own names."""
    dtypes: dict[str, torch.dtype] | None = patcher.get_attachment(KEPT_DTYPES)
    return dtypes or {}


def read_provenance(patcher: Any, part: str = MODEL) -> Provenance | None:
    """The provenance of a quantized MODEL or CLIP, of this session or of its file; None if this pack did not make it.

    Args:
        patcher: Of the MODEL or CLIP.
        part: Name of the encoder whose measurement the provenance has.
    """
    provenance: Provenance | None = patcher.get_attachment(PROVENANCE)
    if provenance is None:
        return Provenance.from_metadata(read_source_metadata(patcher))
    measurements: Mapping[str, Measurement] = patcher.get_attachment(MEASUREMENTS) or {}
    return replace(provenance, measurement=measurements.get(part))


def attach_measurements(patcher: Any, measurements: Mapping[str, Measurement]) -> None:
    """Keep with a quantized MODEL or CLIP, and its clones, how close each of its parts is to its source."""
    patcher.set_attachments(MEASUREMENTS, measurements)


def stamp_source(patcher: Any) -> str:
    """Path, time and size of the files that a patcher comes from; empty where unknown, so that only weights tell."""
    stats = [(str(path), path.stat()) for path in _find_source_files(patcher)]
    return " ".join(f"{name} {stat.st_mtime_ns} {stat.st_size}" for name, stat in stats)


def _find_source_files(patcher: Any) -> list[Path]:
    """The files that a stock loader made this patcher from; empty where unknown."""
    args = (patcher.cached_patcher_init or (None, ()))[1]
    named = args[0] if args else ()
    candidates = [named] if isinstance(named, str) else named if isinstance(named, (list, tuple)) else []
    return [Path(path) for path in candidates if isinstance(path, str) and Path(path).is_file()]
