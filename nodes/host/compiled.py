"""Models that were compiled before they are quantized: what was compiled is the source, with its float weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY, TORCH_COMPILE_KWARGS

from ...quant import QuantError

AFTER = "put the node that compiles after the one that quantizes."


def refuse_float_copies(patcher: Any) -> None:
    """Raise QuantError if what is compiled of the source would go on to run with its float weights.

    That is where a patch puts a compiled module in the place of a part of the model, and where a wrapper is not of
    ComfyUI's making, so that nothing tells which parts it swaps.
    """
    for name, patch in patcher.object_patches.items():
        if hasattr(patch, "_orig_mod"):
            raise QuantError(
                f"'{name}' of this model was replaced by a compiled module, which keeps its float weights; {AFTER}"
            )
    wrappers = patcher.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    if wrappers and not (TORCH_COMPILE_KWARGS in patcher.model_options and all(map(_parts, wrappers))):
        raise QuantError(f"This model was compiled in a way that keeps its float weights; {AFTER}")


def recompile(clone: Any) -> None:
    """Has the wrapper of TorchCompileModel, which samples with the modules that it was given, take the clone's."""
    for wrapper in clone.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
        set_torch_compile_wrapper(clone, keys=_parts(wrapper), **clone.model_options[TORCH_COMPILE_KWARGS])


def _parts(wrapper: Callable[..., Any]) -> list[str]:
    """Names of the modules that a wrapper of the host's swaps, which keeps them nowhere else; of any other, none."""
    known = inspect.getclosurevars(wrapper).nonlocals if inspect.isfunction(wrapper) else {}
    return list(known.get("compiled_module_dict", ()))
