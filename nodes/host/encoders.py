"""What touches ComfyUI's internals for text encoders: reading a CLIP's weights and building it anew, quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sd
from comfy.sd1_clip import SDClipModel
from torch import Tensor

from ...quant import QuantError
from ...quant.formats.marker import SUFFIX
from . import models
from .models import Made, Origin

TRANSFORMER = ".transformer."

QUANTIZED_OPTIONS = {"t5": "t5xxl_quantization_metadata", "llama": "llama_quantization_metadata"}
"""The option by which an encoder of each kind is told, beside others, that its weights are quantized."""

ALONE = "quantization_metadata"
"""The option that every encoder obeys."""


@dataclass(frozen=True)
class Part:
    """One encoder of a CLIP. kind: a key of `QUANTIZED_OPTIONS`, or "" where ComfyUI does not run it quantized."""

    name: str
    kind: str

    @property
    def prefix(self) -> str:
        return self.name + TRANSFORMER


def runnable_parts(clip: Any) -> list[Part]:
    """The encoders of ``clip`` that ComfyUI runs quantized, from a file too. Raises QuantError if there is none."""
    if clip is None:
        raise QuantError("There is no text encoder: the checkpoint that was loaded has none in it.")
    parts = _parts(clip)
    runnable = [part for part in parts if part.kind]
    if not runnable:
        names = ", ".join(part.name for part in parts) or type(clip.cond_stage_model).__name__
        raise QuantError(
            f"The text encoder {names} cannot be quantized: ComfyUI's loaders run only T5-XXL and llama-style "
            "encoders (Llama, Qwen, Gemma, Mistral) quantized and would read any other as garbage."
        )
    return runnable


def quantized_parts(clip: Any) -> list[Part]:
    """The encoders of ``clip`` that hold quantized layers."""
    keys = clip.cond_stage_model.state_dict()
    return [p for p in _parts(clip) if any(k.startswith(p.prefix) and k.endswith(SUFFIX) for k in keys)]


def part_tensors(clip: Any, part: Part) -> dict[str, Tensor]:
    """An encoder's weights without any patch, named as in a file of its own."""
    tensors = models.original_tensors(models.origin_of(clip.patcher))
    return {key.removeprefix(part.prefix): t for key, t in tensors.items() if key.startswith(part.prefix)}


def rebuild_clip(clip: Any, tensors: Mapping[str, Mapping[str, Tensor]], kinds: Mapping[str, str], made: Made) -> Any:
    """A clone of ``clip``, all its patches kept, on a new model with the quantized ``tensors`` of each part by name.

    Parts that are not named are copied. Raises QuantError where ComfyUI ignores that the weights are quantized.
    """
    origin = replace(models.origin_of(clip.patcher), options=_options(clip, kinds))
    prefixes = tuple(name + TRANSFORMER for name in tensors)
    rest = {key: t for key, t in models.original_tensors(origin).items() if not key.startswith(prefixes)}
    named = {f"{name}{TRANSFORMER}{key}": t for name, part in tensors.items() for key, t in part.items()}
    whole = named | models.copied(rest, origin.offload_device)
    fresh = _load(origin, whole, disable_dynamic=not clip.patcher.is_dynamic())
    new = clip.clone()
    new.patcher = models.detached_clone(clip.patcher, fresh, made, _reload, origin.options)
    new.cond_stage_model = new.patcher.model
    return new


def _options(clip: Any, kinds: Mapping[str, str]) -> dict[str, Any]:
    """The options that say which encoders are quantized, as the loader finds them in a file, beside the loader's."""
    options = dict(models.loader_options(clip.patcher))
    found = {"mixed_ops": True}
    options |= {QUANTIZED_OPTIONS[kind]: found for kind in kinds.values()}
    if len(_parts(clip)) == 1:
        options[ALONE] = found
    return options


def _reload(origin: Origin, disable_dynamic: bool = False) -> Any:
    """A fresh patcher with copies of a quantized CLIP's weights."""
    return _load(origin, models.copied(models.original_tensors(origin), origin.offload_device), disable_dynamic)


def _load(origin: Origin, tensors: Mapping[str, Tensor], disable_dynamic: bool = False) -> Any:
    """A patcher on a model of the same class, loaded with ``tensors``; the class itself fixes the compute dtype."""
    dtype = origin.options.get("dtype") or comfy.model_management.text_encoder_dtype(origin.load_device)
    model = type(origin.model)(device=origin.offload_device, dtype=dtype, model_options=dict(origin.options))
    comfy.model_management.archive_model_dtypes(model)
    patcher = models.fresh_patcher(model, origin, disable_dynamic or getattr(model, "disable_offload", False))
    model.load_state_dict(dict(tensors), strict=False, assign=patcher.is_dynamic())
    for layer in (key.removesuffix(SUFFIX) for key in tensors if key.endswith(SUFFIX)):
        if not hasattr(getattr(model.get_submodule(layer), "weight", None), "_qdata"):
            raise QuantError(
                f"ComfyUI ignores that layer '{layer}' of {type(model).__name__} is quantized; this text encoder "
                "cannot be used quantized in a graph."
            )
    return patcher


def _parts(clip: Any) -> list[Part]:
    modules = clip.cond_stage_model.named_modules()
    names = [name for name, module in modules if isinstance(module, SDClipModel)]
    return [Part(name, _kind(clip.cond_stage_model.get_submodule(name))) for name in names]


def _kind(encoder: SDClipModel) -> str:
    """Which of ComfyUI's two ways to notice quantized weights applies to an encoder's file."""
    tensors = encoder.transformer.state_dict()
    if comfy.sd.detect_te_model(tensors) in (comfy.sd.TEModel.T5_XXL, comfy.sd.TEModel.T5_XXL_OLD):
        return "t5"
    return "llama" if comfy.sd.llama_detect([tensors]) else ""
