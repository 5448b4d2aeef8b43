"""Text encoders: which of a CLIP's can be quantized, reading their weights, and building the CLIP again with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sd
from torch import Tensor

from ...quant import QuantError
from ...quant.formats.marker import SUFFIX
from ...quant.reports.provenance import Provenance
from .optional import import_optional
from .origin import KEPT_DTYPES, Origin, read_loader_options, read_origin, read_original_tensors
from .rebuilding import clone_onto, copy_tensors, make_patcher

TRANSFORMER = ".transformer."

QUANTIZED_OPTIONS = {"t5": "t5xxl_quantization_metadata", "llama": "llama_quantization_metadata"}
"""Kind of encoder -> the option that says, in a CLIP of several, that the weights of this one are quantized."""

ALONE = "quantization_metadata"
"""The option that every encoder obeys."""


@dataclass(frozen=True)
class Part:
    """One encoder of a CLIP."""

    name: str
    """The module's name in the CLIP's model, such as ``t5xxl``."""
    kind: str
    """A key of `QUANTIZED_OPTIONS`; empty: ComfyUI does not run this encoder quantized."""

    @property
    def prefix(self) -> str:
        return self.name + TRANSFORMER


def find_runnable_parts(clip: Any) -> list[Part]:
    """The encoders of a CLIP that ComfyUI runs quantized, also from a file.

    Raises:
        QuantError: if there is none.
    """
    if clip is None:
        raise QuantError("There is no text encoder: the checkpoint that was loaded has none in it.")
    parts = _find_parts(clip)
    runnable = [part for part in parts if part.kind]
    if not runnable:
        names = ", ".join(part.name for part in parts) or type(clip.cond_stage_model).__name__
        if any(_has_merged_weights(clip.cond_stage_model.get_submodule(part.name)) for part in parts):
            raise QuantError(
                f"This ComfyUI has merged layers of the text encoder {names} that are separate in its file; quantize "
                "the file with the node Quantize."
            )
        raise QuantError(
            f"The text encoder {names} cannot be quantized: ComfyUI's loaders run only T5-XXL and llama-style "
            "encoders (Llama, Qwen, Gemma, Mistral) quantized and would read any other as garbage."
        )
    return runnable


def find_quantized_parts(clip: Any) -> list[Part]:
    """The encoders of a CLIP that hold quantized layers."""
    keys = clip.cond_stage_model.state_dict()
    return [p for p in _find_parts(clip) if any(k.startswith(p.prefix) and k.endswith(SUFFIX) for k in keys)]


def read_part_tensors(clip: Any, part: Part) -> dict[str, Tensor]:
    """An encoder's weights without any patch, named as in its own file."""
    tensors = read_original_tensors(read_origin(clip.patcher))
    return {key.removeprefix(part.prefix): t for key, t in tensors.items() if key.startswith(part.prefix)}


def rebuild_clip(
    clip: Any, tensors: Mapping[str, Mapping[str, Tensor]], kinds: Mapping[str, str], provenance: Provenance
) -> Any:
    """Clone a CLIP, all its patches kept, on a new model with quantized weights.

    Args:
        clip: The CLIP; it keeps its own model and stays usable.
        tensors: The quantized weights of each encoder by the encoder's name; other encoders are copied.
        kinds: The kind of each of these encoders, as in `Part`.
        provenance: Of these weights.

    Returns:
        The quantized CLIP.

    Raises:
        QuantError: if ComfyUI ignores that the weights are quantized, or a patch cannot be bound to the new model.
    """
    origin = replace(read_origin(clip.patcher), options=_make_options(clip, kinds))
    prefixes = tuple(name + TRANSFORMER for name in tensors)
    rest = {key: t for key, t in read_original_tensors(origin).items() if not key.startswith(prefixes)}
    named = {f"{name}{TRANSFORMER}{key}": t for name, part in tensors.items() for key, t in part.items()}
    whole = named | copy_tensors(rest, origin.offload_device)
    fresh = _load(origin, whole, disable_dynamic=not clip.patcher.is_dynamic())
    new = clip.clone()
    new.patcher = clone_onto(fresh, clip.patcher, provenance, _reload, origin.options)
    new.patcher.set_attachments(KEPT_DTYPES, {name: t.dtype for name, t in named.items()})
    new.cond_stage_model = new.patcher.model
    return new


def _make_options(clip: Any, kinds: Mapping[str, str]) -> dict[str, Any]:
    """The loader's options, with those that it adds for a file whose weights are quantized."""
    options = dict(read_loader_options(clip.patcher))
    quantized = {"mixed_ops": True}
    options |= {QUANTIZED_OPTIONS[kind]: quantized for kind in kinds.values()}
    if len(_find_parts(clip)) == 1:
        options[ALONE] = quantized
    return options


def _reload(origin: Origin, disable_dynamic: bool = False) -> Any:
    """A fresh patcher with copies of a quantized CLIP's weights: its ``cached_patcher_init``."""
    return _load(origin, copy_tensors(read_original_tensors(origin), origin.offload_device), disable_dynamic)


def _load(origin: Origin, tensors: Mapping[str, Tensor], disable_dynamic: bool = False) -> Any:
    """A patcher on a model of the same class, loaded with ``tensors``; the class itself fixes the compute dtype."""
    dtype = origin.options.get("dtype") or comfy.model_management.text_encoder_dtype(origin.load_device)
    model = type(origin.model)(device=origin.offload_device, dtype=dtype, model_options=dict(origin.options))
    comfy.model_management.archive_model_dtypes(model)
    patcher = make_patcher(model, origin, disable_dynamic or getattr(model, "disable_offload", False))
    model.load_state_dict(dict(tensors), strict=False, assign=patcher.is_dynamic())
    for layer in (key.removesuffix(SUFFIX) for key in tensors if key.endswith(SUFFIX)):
        if not hasattr(getattr(model.get_submodule(layer), "weight", None), "_qdata"):
            raise QuantError(
                f"ComfyUI ignores that layer '{layer}' of {type(model).__name__} is quantized; this text encoder "
                "cannot be used quantized in a graph."
            )
    return patcher


def _find_parts(clip: Any) -> list[Part]:
    from comfy.sd1_clip import SDClipModel

    encoders = ((n, module) for n, module in clip.cond_stage_model.named_modules() if isinstance(module, SDClipModel))
    return [Part(name, _find_kind(encoder)) for name, encoder in encoders]


def _has_merged_weights(encoder: Any) -> bool:
    """Whether a llama-style encoder, which is quantizable, lacks the layers by which ComfyUI knows its file."""
    loss = "llama-style text encoders with merged layers are not recognised"
    class_ = import_optional("comfy.text_encoders.llama", "BaseLlama", loss)
    return class_ is not None and isinstance(encoder.transformer, class_) and not _find_kind(encoder)


def _find_kind(encoder: Any) -> str:
    """Which of ComfyUI's two ways to notice quantized weights applies to an encoder's file."""
    tensors = encoder.transformer.state_dict()
    if comfy.sd.detect_te_model(tensors) in (comfy.sd.TEModel.T5_XXL, comfy.sd.TEModel.T5_XXL_OLD):
        return "t5"
    return "llama" if comfy.sd.llama_detect([tensors]) else ""
