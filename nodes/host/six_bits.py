"""Makes ComfyUI's loaders and savers know ``w6a8_int8`` where comfy-kitchen has the layout and ComfyUI not the name.

ComfyUI knows the name since October 2026. comfy-kitchen's layout of 4 bits reads 6 bits as well, from the width of the
codes, so that an older ComfyUI loads 6 bits under the name of the 4-bit format. No file has them under that name, which
newer versions refuse: it is exchanged while a layer is loaded, and put back when the layer is saved.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.ops
import comfy.quant_ops
from comfy_kitchen.tensor import base
from torch import Tensor

from ...kernels import layouts
from ...quant.formats import FORMATS
from ...quant.formats.marker import NAME, Marker
from .registration import WRAPPED, find_mismatch, no_quantized_models, read_marker

SIX, FOUR = (FORMATS[name].comfyui_name for name in ("w6a8", "w4a8"))
LAYOUT = "AsymW4A8Int8Layout"

_installed: dict[str, Any] = {}
"""The wrappers that `register` has put in place."""


def register() -> None:
    """Register the format where it is missing and can be run; a second call changes nothing."""
    algorithms = getattr(comfy.quant_ops, "QUANT_ALGOS", {})
    if SIX in algorithms or FOUR not in algorithms or not has_layout() or no_quantized_models():
        return
    if find_mismatch():
        logging.warning("calibrated-rounding: this ComfyUI's loaders cannot be taught %s; a newer one knows it.", SIX)
        return
    algorithms[SIX] = {**algorithms[FOUR], "pack": layouts.PACK}
    for name, wrap in zip(WRAPPED, (_loading, _saving), strict=True):
        _installed[name] = wrap(getattr(comfy.ops, name))
        setattr(comfy.ops, name, _installed[name])


def unregister() -> None:
    """Undo `register`. A wrapper that another pack has wrapped in turn stays in the chain and passes everything on."""
    if not _is_active():
        return
    del comfy.quant_ops.QUANT_ALGOS[SIX]
    for name, function in _installed.items():
        if getattr(comfy.ops, name) is function:
            setattr(comfy.ops, name, function.__wrapped__)


def has_layout() -> bool:
    """Whether comfy-kitchen's layout holds 6 bits: asked of its quantizer."""
    quantize = getattr(base.LAYOUTS.get(LAYOUT), "quantize", None)
    return quantize is not None and "bits" in inspect.signature(quantize).parameters


def _is_active() -> bool:
    return comfy.quant_ops.QUANT_ALGOS.get(SIX, {}).get("pack") == layouts.PACK


def _loading(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load(
        module: Any, super_load: Any, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> Any:
        key = prefix + NAME
        marker = read_marker(prefix, state_dict[key]) if key in state_dict and _is_active() else Marker()
        if marker.format != SIX:
            return original(module, super_load, state_dict, prefix, *args, **kwargs)
        _refuse_misfit(prefix.rstrip("."), state_dict, prefix, module._orig_shape)
        state_dict[key] = replace(marker, format=FOUR).to_tensor()
        result = original(module, super_load, state_dict, prefix, *args, **kwargs)
        module.quant_format = SIX
        return result

    return load


def _saving(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save(module: Any, sd: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> Any:
        saved, key = original(module, sd, prefix, *args, **kwargs), prefix + NAME
        params = getattr(getattr(module, "weight", None), "_params", None)
        if getattr(module, "quant_format", None) == SIX and key in saved and params is not None and _is_active():
            marker = replace(
                read_marker(prefix, saved[key]),
                convrot=True,
                convrot_groupsize=params.convrot_groupsize,
                group_size=params.group_size,
            )
            saved[key] = marker.to_tensor()
        return saved

    return save


def _refuse_misfit(layer: str, state_dict: dict[str, Tensor], prefix: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError for codes of another width, which the layout would take for codes of 4 bits."""
    codes = state_dict.get(f"{prefix}weight")
    width = shape[-1] * 3 // 4
    if codes is not None and codes.shape[-1] != width:
        raise ValueError(f"Layer '{layer}' is {SIX} and holds {list(codes.shape)}; its codes need {width} columns.")
