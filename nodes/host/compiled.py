"""Models that were compiled before they are quantized: the compiled parts are the source's, with its float weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP

from ...quant import QuantError
from .optional import import_optional

COMPILE_KEY = "torch.compile"
"""Key of the wrapper that ComfyUI's TorchCompileModel adds."""

AFTER = "put the node that compiles after the one that quantizes."


def refuse_float_copies(patcher: Any) -> None:
    """Refuse models whose compiled parts cannot be replaced.

    Raises:
        QuantError: if a patch puts a compiled module in the place of a part of the model, or a wrapper is not of
            ComfyUI's making, so that nothing tells which parts it swaps.
    """
    for name, patch in patcher.object_patches.items():
        if hasattr(patch, "_orig_mod"):
            raise QuantError(
                f"'{name}' of this model was replaced by a compiled module, which keeps its float weights; {AFTER}"
            )
    wrappers = patcher.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    settings = _find_settings(patcher)
    if wrappers and not (settings is not None and _find_compiler() and all(map(_list_parts, wrappers))):
        raise QuantError(f"This model was compiled in a way that keeps its float weights; {AFTER}")


def recompile(clone: Any) -> None:
    """Compile the clone's own parts: TorchCompileModel's wrapper would go on to use the source's."""
    for wrapper in clone.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
        _find_compiler()(clone, keys=_list_parts(wrapper), **_find_settings(clone))


def _find_compiler() -> Callable[..., None] | None:
    """ComfyUI's function that compiles parts of a model and adds the wrapper."""
    loss = "models that were compiled before cannot be quantized"
    return import_optional("comfy_api.torch_helpers", "set_torch_compile_wrapper", loss)


def _find_settings(patcher: Any) -> dict[str, Any] | None:
    """The keyword arguments of `torch.compile` that TorchCompileModel has kept."""
    return patcher.model_options.get("torch_compile_kwargs")


def _list_parts(wrapper: Callable[..., Any]) -> list[str]:
    """Names of the modules that TorchCompileModel's wrapper swaps, which it keeps nowhere else; empty for others."""
    closure = inspect.getclosurevars(wrapper).nonlocals if inspect.isfunction(wrapper) else {}
    return list(closure.get("compiled_module_dict", ()))
