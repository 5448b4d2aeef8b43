"""Building a MODEL again with quantized weights."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...quant.reports.provenance import Provenance
from .bindings import rebind
from .compiled import recompile
from .origin import (
    FILES,
    KEPT_DTYPES,
    METADATA,
    PREFIX,
    PROVENANCE,
    Origin,
    read_diffusion_tensors,
    read_origin,
    read_original_tensors,
    read_source_metadata,
    read_source_names,
)
from .recording import RECORDING

Reload = Callable[..., Any]
"""Makes a fresh patcher from an `Origin`, as ComfyUI's loaders make one; ``disable_dynamic`` as for theirs."""


def rebuild_model(patcher: Any, tensors: Mapping[str, Tensor], provenance: Provenance) -> Any:
    """Clone a MODEL, all its patches kept, on a new model with quantized weights.

    Args:
        patcher: The MODEL; it keeps its own model and stays usable.
        tensors: The quantized weights, named as `read_diffusion_tensors` names them.
        provenance: Of these weights.

    Returns:
        The quantized MODEL.

    Raises:
        QuantError: if a patch is bound to the source's modules and cannot be bound to the new ones.
    """
    origin = read_origin(patcher)
    fresh = _load(origin, tensors, disable_dynamic=not patcher.is_dynamic())
    clone = clone_onto(fresh, patcher, provenance, _reload, origin.options)
    clone.set_attachments(KEPT_DTYPES, {PREFIX + name: t.dtype for name, t in tensors.items()})
    clone.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, RECORDING)
    recompile(clone)
    return clone


def copy_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies on ``device``: two models never share a weight, as ComfyUI patches some in place.

    Markers and other settings in bytes stay on the CPU, where ComfyUI reads them.
    """
    return {key: t.detach().to("cpu" if _is_bytes(t) else device, copy=True) for key, t in tensors.items()}


def _is_bytes(tensor: Tensor) -> bool:
    return tensor.dtype == torch.uint8 and tensor.dim() == 1


def _reload(origin: Origin, disable_dynamic: bool = False) -> Any:
    """A fresh patcher with copies of a quantized model's weights: the ``cached_patcher_init`` of `rebuild_model`."""
    return _load(origin, copy_tensors(read_diffusion_tensors(origin), origin.offload_device), disable_dynamic)


def _load(origin: Origin, tensors: Mapping[str, Tensor], disable_dynamic: bool = False) -> Any:
    """Load ``tensors`` as ComfyUI's diffusion model loader does, in the source's configuration."""
    management, config = comfy.model_management, _make_config(origin, tensors)
    model = config.get_model(dict(tensors), "")
    if model.model_type != origin.model.model_type:
        # Some configurations read the type from keys that the loader has consumed.
        model.model_type = origin.model.model_type
        model.model_sampling = comfy.model_base.model_sampling(config, model.model_type)
    patcher = make_patcher(model, origin, disable_dynamic)
    if not management.is_device_cpu(origin.offload_device):
        model.to(origin.offload_device)
    originals = read_original_tensors(origin)
    rest = {key: t for key, t in originals.items() if not key.startswith((PREFIX, "model_sampling."))}
    # In one call: to a quantized layer, a state dict that lacks its weight means that it has none.
    named = {PREFIX + key: t for key, t in tensors.items()} | copy_tensors(rest, origin.offload_device)
    missing, unexpected = model.load_state_dict(named, strict=False, assign=patcher.is_dynamic())
    missing = [key for key in missing if key.startswith(PREFIX)]
    if missing or unexpected:
        logging.warning("calibrated-rounding: keys missing %s, unexpected %s", missing, unexpected)
    return patcher


def _make_config(origin: Origin, tensors: Mapping[str, Tensor]) -> Any:
    """The source's model configuration for quantized weights, with the dtypes that ComfyUI's loader would choose."""
    management, source = comfy.model_management, origin.model.model_config
    # copy.copy does not work on a class whose __getattr__ answers everything.
    config = object.__new__(type(source))
    config.__dict__.update(source.__dict__)
    config.unet_config = dict(source.unet_config)
    config.quant_config = {"mixed_ops": True}
    supported = config.supported_inference_dtypes
    dtype = origin.options.get("dtype") or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(dict(tensors)),
        supported_dtypes=list(supported),
        weight_dtype=None,
    )
    manual_cast = management.unet_manual_cast(None, origin.load_device, supported)
    config.set_inference_dtype(dtype, manual_cast, device=origin.load_device)
    return config


def make_patcher(model: Any, origin: Origin, disable_dynamic: bool) -> Any:
    """A patcher for ``model`` on the source's devices, as ComfyUI's loaders make one."""
    classes = comfy.model_patcher
    class_ = classes.ModelPatcher if disable_dynamic else classes.CoreModelPatcher
    return class_(model, load_device=origin.load_device, offload_device=origin.offload_device)


def clone_onto(fresh: Any, patcher: Any, provenance: Provenance, reload: Reload, options: Mapping[str, Any]) -> Any:
    """Clone ``patcher`` on the model of ``fresh``; the clone shares nothing with its source but the patches.

    Args:
        fresh: A patcher of the new model.
        patcher: The source.
        provenance: Of the new model.
        reload: Makes another patcher like ``fresh`` from the clone's `Origin`; ComfyUI calls it for deep copies.
        options: Of the clone's `Origin`.

    Raises:
        QuantError: if a patch is bound to the source's modules and cannot be bound to the new ones.
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
    rebind(clone, read_origin(patcher))
    clone.set_attachments(PROVENANCE, provenance)
    clone.set_attachments(METADATA, read_source_metadata(patcher))
    clone.set_attachments(FILES, read_source_names(patcher))
    clone.cached_patcher_init = (reload, (replace(read_origin(clone), options=options),))
    return clone
