"""What touches ComfyUI's internals for diffusion models: reading a MODEL's weights and building it anew, quantized."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...quant import QuantError, Recipe, Report
from ...quant.files import read_header
from .compiled import recompile

ATTACHMENT = "calibrated_rounding"
RECORDING = "calibrated_rounding_recording"
"""Key of the wrapper that records what layers are fed; a rebuilt model does not keep it."""

PREFIX = "diffusion_model."


@dataclass(frozen=True)
class Made:
    """What a quantized MODEL or CLIP carries with it, so that a save node can write how it was made.

    metadata: the source file's header fields.
    """

    recipe: Recipe
    report: Report
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """A loaded model and what is needed to read its own weights and build the like of it, whatever is patched now."""

    model: Any
    override: tuple[Any, ...]
    hook_backup: Mapping[str, Any]
    load_device: torch.device
    offload_device: torch.device
    options: Mapping[str, Any]


def origin_of(patcher: Any) -> Origin:
    model, override = patcher.get_clone_model_override()
    options = loader_options(patcher)
    return Origin(model, override, patcher.hook_backup, patcher.load_device, patcher.offload_device, options)


def original_tensors(origin: Origin) -> dict[str, Tensor]:
    """A model's weights without any patch, as a checkpoint has them; patches applied now are seen through."""
    tensors: dict[str, Tensor] = dict(origin.model.state_dict())
    backup, buffers = origin.override[0], origin.override[1]
    saved = [(key, weight) for key, (weight, *_) in origin.hook_backup.items()]
    saved += [(key, entry.weight) for key, entry in backup.items()]
    for key, weight in [*saved, *buffers.items()]:
        tensors.update(weight.state_dict(key) if hasattr(weight, "_qdata") else {key: weight})
    return tensors


def diffusion_tensors(origin: Origin) -> dict[str, Tensor]:
    """The diffusion model's part of `original_tensors`, without the prefix."""
    if origin.model.model_config.custom_operations is not None:
        raise QuantError(
            "This model was loaded with another pack's own operations, which ComfyUI's formats do not run with; "
            "load it with Load Diffusion Model or Load Checkpoint."
        )
    tensors = original_tensors(origin)
    return {key.removeprefix(PREFIX): t for key, t in tensors.items() if key.startswith(PREFIX)}


def copied(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies on ``device``: two models never share a weight, as the host patches some in place."""
    return {key: t.detach().to(device, copy=True) for key, t in tensors.items()}


def rebuild_model(patcher: Any, tensors: Mapping[str, Tensor], made: Made) -> Any:
    """A clone of a MODEL's patcher, all its patches kept, on a new model with the quantized ``tensors``.

    ``tensors`` are named as `diffusion_tensors` names them. The source keeps its own model and stays usable.
    """
    origin = origin_of(patcher)
    fresh = _load(origin, tensors, disable_dynamic=not patcher.is_dynamic())
    clone = detached_clone(patcher, fresh, made, _reload, origin.options)
    clone.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, RECORDING)
    recompile(clone)
    return clone


def _reload(origin: Origin, disable_dynamic: bool = False) -> Any:
    """A fresh patcher with copies of a quantized model's weights: the ``cached_patcher_init`` of `rebuild_model`."""
    return _load(origin, copied(diffusion_tensors(origin), origin.offload_device), disable_dynamic)


def _load(origin: Origin, tensors: Mapping[str, Tensor], disable_dynamic: bool = False) -> Any:
    """What ComfyUI's diffusion model loader would make of ``tensors``, in the source's configuration."""
    management, config = comfy.model_management, _quantized_config(origin)
    supported = list(config.supported_inference_dtypes)
    parameters = comfy.utils.calculate_parameters(dict(tensors))
    dtype = origin.options.get("dtype") or management.unet_dtype(
        model_params=parameters, supported_dtypes=supported, weight_dtype=None
    )
    manual_cast = management.unet_manual_cast(None, origin.load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, manual_cast, device=origin.load_device)
    model = config.get_model(dict(tensors), "")
    if model.model_type != origin.model.model_type:
        # Some configurations read the type from keys that the loader has consumed.
        model.model_type = origin.model.model_type
        model.model_sampling = comfy.model_base.model_sampling(config, model.model_type)
    patcher = fresh_patcher(model, origin, disable_dynamic)
    if not management.is_device_cpu(origin.offload_device):
        model.to(origin.offload_device)
    rest = {key: t for key, t in original_tensors(origin).items() if not key.startswith((PREFIX, "model_sampling."))}
    # In one call: to a quantized layer, a state dict that lacks its weight means that it has none.
    named = {PREFIX + key: t for key, t in tensors.items()} | copied(rest, origin.offload_device)
    missing, unexpected = model.load_state_dict(named, strict=False, assign=patcher.is_dynamic())
    missing = [key for key in missing if key.startswith(PREFIX)]
    if missing or unexpected:
        logging.warning("calibrated-rounding: keys missing %s, unexpected %s", missing, unexpected)
    return patcher


def _quantized_config(origin: Origin) -> Any:
    source = origin.model.model_config
    # copy.copy does not work on a class whose __getattr__ answers everything.
    config = object.__new__(type(source))
    config.__dict__.update(source.__dict__)
    config.unet_config = dict(source.unet_config)
    config.quant_config = {"mixed_ops": True}
    return config


def fresh_patcher(model: Any, origin: Origin, disable_dynamic: bool) -> Any:
    """A patcher as the loaders make it."""
    classes = comfy.model_patcher
    class_ = classes.ModelPatcher if disable_dynamic else classes.CoreModelPatcher
    return class_(model, load_device=origin.load_device, offload_device=origin.offload_device)


def detached_clone(patcher: Any, fresh: Any, made: Made, reload: Any, options: Mapping[str, Any]) -> Any:
    """A clone of ``patcher`` on the model of ``fresh`` that shares nothing with its source but the patches.

    ``reload`` makes another patcher like ``fresh`` from the clone's `Origin` with ``options``; the host calls it for
    deep copies.
    """
    clone = patcher.clone(model_override=fresh.get_clone_model_override())
    clone.size = 0
    clone.parent = None
    clone.is_injected = False
    clone.current_hooks = None
    clone.hook_backup, clone.cached_hook_patches, clone.hook_patches_backup = {}, {}, None
    clone.patches_uuid, clone.clone_base_uuid = uuid.uuid4(), uuid.uuid4()
    clone.remove_additional_models("multigpu")
    if hasattr(clone, "register_load_device"):
        clone.register_load_device(clone.load_device)
    clone.set_attachments(ATTACHMENT, made)
    clone.cached_patcher_init = (reload, (replace(origin_of(clone), options=options),))
    return clone


def loader_options(patcher: Any) -> Mapping[str, Any]:
    """The options that the loader node was given; empty where unknown."""
    args = (patcher.cached_patcher_init or (None, ()))[1]
    if args and isinstance(args[0], Origin):
        return args[0].options
    # A checkpoint's loader takes two, the model's and then the text encoder's.
    found = [arg for arg in args if isinstance(arg, dict)] or [{}]
    return found[-1 if patcher.is_clip else 0]


def source_paths(patcher: Any) -> list[Path]:
    """The files that a stock loader made this patcher from; empty where unknown."""
    args = (patcher.cached_patcher_init or (None, ()))[1]
    named = args[0] if args else ()
    candidates = [named] if isinstance(named, str) else named if isinstance(named, (list, tuple)) else []
    return [Path(path) for path in candidates if isinstance(path, str) and Path(path).is_file()]


def source_metadata(patcher: Any) -> dict[str, str]:
    """The header fields of the file that a MODEL comes from, if it is one safetensors file."""
    made = patcher.get_attachment(ATTACHMENT)
    if made is not None:
        return dict(made.metadata)
    paths = source_paths(patcher)
    try:
        return dict(read_header(paths[0]).metadata) if len(paths) == 1 else {}
    except QuantError:
        return {}


def source_stamp(patcher: Any) -> str:
    """Path, time and size of a patcher's files; empty where unknown, so that only the weights can tell it."""
    stats = [(str(path), path.stat()) for path in source_paths(patcher)]
    return " ".join(f"{name} {stat.st_mtime_ns} {stat.st_size}" for name, stat in stats)
