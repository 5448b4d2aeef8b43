"""Makes ComfyUI's own loaders and savers know ``int8_blockwise`` while the pack is installed.

Two functions of ``comfy.ops``, which every quantized layer calls by name, are wrapped. Layers in other formats go on
to the function that was there before: ComfyUI's own, or another pack's wrapper. See `register`.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import comfy.ops
import comfy.quant_ops
import torch
from torch import Tensor

from ...kernels import layouts
from ...kernels.checks import BLOCKS
from ...quant import QuantError, Recipe
from ...quant.formats import BLOCKWISE, Format
from ...quant.formats.marker import NAME, Marker

ALGORITHM: Mapping[str, Any] = {
    "storage_t": torch.int8,
    "parameters": {"weight_scale"},
    "comfy_tensor_layout": layouts.NAME,
    # Inputs reach the layout as they are; its product quantizes them.
    "quantize_input": False,
    "pack": layouts.PACK,
    "loaders": True,
}
"""The format's entry in ``QUANT_ALGOS``. ``pack`` names its owner; ``loaders``: ComfyUI's loaders read the format."""

LAYERS_ONLY: Mapping[str, Any] = {**ALGORITHM, "loaders": False}
"""The entry if ComfyUI's loaders cannot be wrapped: enough for the layers that `nodes_blockwise` makes."""

WRAPPED = ("_load_quantized_module", "_quantized_weight_state_dict")

_installed: dict[str, Any] = {}
"""The wrappers that `register` has put in place."""


def register() -> str:
    """Register the format with ComfyUI. Entries of other packs under these names stay; a second call changes nothing.

    Returns:
        Why it was not registered, in one sentence, which is also logged; empty if it was.
    """
    layouts.register()
    obstacle = "" if is_registered() else no_quantized_models() or _owner() or find_mismatch()
    if obstacle:
        logging.warning("calibrated-rounding: %s", obstacle)
    elif not is_registered():
        comfy.quant_ops.QUANT_ALGOS[BLOCKWISE] = ALGORITHM
        for name, wrap in zip(WRAPPED, (_loading, _saving), strict=True):
            _installed[name] = wrap(getattr(comfy.ops, name))
            setattr(comfy.ops, name, _installed[name])
    return obstacle


def unregister() -> None:
    """Undo `register`. A wrapper that another pack has wrapped in turn stays in the chain and passes everything on."""
    algorithms = comfy.quant_ops.QUANT_ALGOS
    if algorithms.get(BLOCKWISE) is not ALGORITHM:
        return
    del algorithms[BLOCKWISE]
    for name, function in _installed.items():
        if getattr(comfy.ops, name) is function:
            setattr(comfy.ops, name, function.__wrapped__)


def is_registered() -> bool:
    """Whether this pack, by this import of it or another, has registered the format."""
    return _is_own(_entry()) and bool(_entry()["loaders"])


def is_loadable() -> bool:
    """Whether ComfyUI's loaders read the format, thanks to this pack or another."""
    return bool(_entry()) and _entry().get("loaders", True)


def needs_own_loader() -> bool:
    """Whether `nodes_blockwise` has to load the format because ComfyUI's loaders do not."""
    return not is_loadable() and not no_quantized_models()


def no_quantized_models() -> str:
    """Say why ComfyUI runs no quantized model in any format; empty if it does.

    ComfyUI also starts without the comfy-kitchen that it needs, as after an update of its code alone. It then has empty
    classes in place of the ones that it could not import.
    """
    if issubclass(getattr(comfy.quant_ops, "QuantizedTensor", Tensor), Tensor):
        return ""
    return (
        "comfy-kitchen does not fit this ComfyUI, which therefore runs no quantized model (the start of the log says "
        "more); install ComfyUI's requirements.txt and start it again. The node Quantize works as it is."
    )


def refuse_unloadable(recipe: Recipe) -> None:
    """Raise QuantError if a recipe has a format that this ComfyUI cannot build a model with."""
    if obstacle := no_quantized_models():
        raise QuantError(obstacle)
    formats = sorted(recipe.usable_formats, key=lambda fmt: fmt.name)
    own = [fmt for fmt in formats if not fmt.stock]
    if own and not is_loadable():
        raise QuantError(
            f"This ComfyUI cannot be taught {own[0].name}, so no model can be built with it here; make a file with "
            "the node Quantize and load it with Load Block-wise Model."
        )
    unknown = [fmt for fmt in formats if fmt.comfyui_name not in comfy.quant_ops.QUANT_ALGOS]
    if unknown:
        raise QuantError(
            f"This ComfyUI does not know {unknown[0].name}, so no model can be built with it here; "
            f"{_needed(unknown[0])}choose another format, or update ComfyUI and its requirements."
        )


def _needed(fmt: Format) -> str:
    return f"it needs {fmt.needs}; " if fmt.needs else ""


def marked(state_dict: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether a layer's state dict holds a weight in the format."""
    marker = state_dict.get(prefix + NAME)
    return marker is not None and f"{prefix}weight" in state_dict and read_marker(prefix, marker).format == BLOCKWISE


def load_layer(
    module: Any,
    super_load: Callable[..., None],
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    *rest: Any,
) -> None:
    """Do for a weight in the format what ``_load_quantized_module`` does for others.

    ``input_scale``, a constant in other programs' files, is dropped.

    Raises:
        ValueError: names the layer; its tensors do not fit each other or the model, or its marker is not understood.
    """
    layer, marker = prefix.rstrip("."), read_marker(prefix, state_dict.pop(prefix + NAME))
    codes, scale = state_dict.pop(f"{prefix}weight"), state_dict.pop(f"{prefix}weight_scale", None)
    state_dict.pop(f"{prefix}input_scale", None)
    size = marker.group_size or layouts.BLOCK_SIZE
    _refuse_unknown(layer, marker)
    _refuse_misfits(layer, codes, scale, size, module._orig_shape)
    device, dtype = module.factory_kwargs["device"], module.factory_kwargs["dtype"]
    module.quant_format, module.layout_type = BLOCKWISE, layouts.NAME
    module._full_precision_mm_config = bool(marker.full_precision_matrix_mult)
    module._full_precision_mm = module._full_precision_mm or module._full_precision_mm_config
    weight = layouts.make_tensor(codes.to(device), scale.to(device, torch.float32), dtype, size)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    super_load(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
    missing_keys[:] = [key for key in missing_keys if key != f"{prefix}weight"]


def complete_marker(module: Any, saved: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Add the block size to the marker in a layer's state dict, if the layer is in the format."""
    key = prefix + NAME
    size = getattr(getattr(getattr(module, "weight", None), "_params", None), "block_size", None)
    if getattr(module, "quant_format", None) == BLOCKWISE and size is not None and key in saved:
        saved[key] = replace(read_marker(prefix, saved[key]), group_size=size).to_tensor()
    return saved


def _loading(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load(
        module: Any, super_load: Any, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> Any:
        if _active() and marked(state_dict, prefix):
            return load_layer(module, super_load, state_dict, prefix, *args)
        return original(module, super_load, state_dict, prefix, *args, **kwargs)

    return load


def _saving(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save(module: Any, sd: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> Any:
        saved = original(module, sd, prefix, *args, **kwargs)
        return complete_marker(module, saved, prefix) if _active() else saved

    return save


def _active() -> bool:
    """False after `unregister`, and if another pack has replaced the entry or the layout."""
    return comfy.quant_ops.QUANT_ALGOS.get(BLOCKWISE) is ALGORITHM and layouts.is_own()


def _owner() -> str:
    """Say whether another pack has the format or the layout; empty if none has."""
    if (_entry() and not _is_own(_entry())) or not layouts.is_own():
        return f"another pack has registered {BLOCKWISE}; its files are left to that pack."
    return ""


def find_mismatch() -> str:
    """Say why the wrappers do not fit this ComfyUI; empty if they do."""
    expected = {
        WRAPPED[0]: ("module", "super_load", "state_dict", "prefix", "local_metadata", "strict", "missing_keys"),
        WRAPPED[1]: ("module", "sd", "prefix"),
    }
    fits = all(_begins_with(getattr(comfy.ops, name, None), names) for name, names in expected.items())
    if fits and hasattr(comfy.quant_ops, "QUANT_ALGOS"):
        return ""
    return f"this ComfyUI's loaders cannot be taught {BLOCKWISE}; Load Block-wise Model reads such files instead."


def _begins_with(function: Any, names: tuple[str, ...]) -> bool:
    if not callable(function):
        return False
    parameters = inspect.signature(function).parameters
    anything = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())
    return anything or tuple(parameters)[: len(names)] == names


def _entry() -> Mapping[str, Any]:
    """The format's entry in ComfyUI's table; empty if there is none."""
    return getattr(comfy.quant_ops, "QUANT_ALGOS", {}).get(BLOCKWISE, {})


def _is_own(entry: Mapping[str, Any]) -> bool:
    return entry.get("pack") == layouts.PACK


def read_marker(prefix: str, marker: Tensor) -> Marker:
    """The marker in a layer's state dict, on any device."""
    return Marker.from_tensor(prefix.rstrip("."), marker.to("cpu"))


def _refuse_unknown(layer: str, marker: Marker) -> None:
    for field, value in marker.unknown.items():
        raise ValueError(f"Layer '{layer}' has the marker field {field!r} with the value {value!r}, which is unknown.")


def _refuse_misfits(layer: str, codes: Tensor, scale: Tensor | None, size: int, shape: tuple[int, ...]) -> None:
    if size not in BLOCKS:
        raise ValueError(
            f"Layer '{layer}' is in blocks of {size}, and only {' and '.join(map(str, BLOCKS))} can be run; quantize "
            "the file again with --dequantize."
        )
    blocks = tuple(-(-side // size) for side in codes.shape)
    if tuple(codes.shape) != tuple(shape) or codes.dtype != torch.int8:
        raise ValueError(f"Layer '{layer}' holds {codes.dtype} {list(codes.shape)}, not torch.int8 {list(shape)}.")
    if scale is None or tuple(scale.shape) != blocks:
        found = "no scale" if scale is None else f"a scale of shape {list(scale.shape)}"
        raise ValueError(f"Layer '{layer}' has {found}; its blocks of {size} need {list(blocks)}.")
