"""The formats that ``auto`` may choose from in this ComfyUI and on its device."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.model_management
import comfy.quant_ops

from ...quant import Recipe
from ...quant.formats import FORMATS, NATIVE_ONLY, Format
from ...quant.notices import Notice, notice

COMPUTE: Mapping[str, str] = {
    "float8_e4m3fn": "supports_fp8_compute",
    "mxfp8": "supports_mxfp8_compute",
    # Since 0.38; older versions compute INT8 on every device.
    "int8_tensorwise": "supports_int8_compute",
    "asym_w4a8_int8": "supports_int8_compute",
    "w6a8_int8": "supports_int8_compute",
    "nvfp4": "supports_nvfp4_compute",
}
"""Marker's format -> the function of ComfyUI's model_management that says whether a device computes in it."""


def computes(fmt: Format) -> bool | None:
    """Whether the present device multiplies in a format; None if this ComfyUI cannot tell."""
    native = getattr(comfy.model_management, COMPUTE.get(fmt.comfyui_name, ""), None)
    return None if native is None else bool(native(comfy.model_management.get_torch_device()))


def is_emulated(fmt: Format) -> bool:
    """Whether the present device lacks the format, so that ComfyUI computes in 16 or 32 bits."""
    return fmt.needs_full_precision or computes(fmt) is False


def is_known(fmt: Format) -> bool:
    """Whether this ComfyUI, with the pack, loads the format."""
    return fmt.comfyui_name in getattr(comfy.quant_ops, "QUANT_ALGOS", {})


def leave_out_unusable(recipe: Recipe, *, weight_only: bool) -> tuple[Recipe, list[Notice]]:
    """Leave out of ``auto`` what cannot be loaded here, and what the device does not multiply.

    Args:
        recipe: With a named format, or if nothing would be left, it stays as it is.
        weight_only: ComfyUI dequantizes the weights, so that the device's products do not matter: text encoders.

    Returns:
        The recipe, and a notice for each reason to leave formats out.
    """
    unknown = [name for name in recipe.open_formats if not is_known(FORMATS[name])]
    recipe, notices = _leave_out(recipe, unknown, "candidates_unknown")
    emulated = [name for name in recipe.open_formats if name in NATIVE_ONLY and is_emulated(FORMATS[name])]
    if weight_only:
        return recipe, notices
    recipe, more = _leave_out(recipe, emulated, "candidates_emulated")
    return recipe, [*notices, *more]


def _leave_out(recipe: Recipe, names: list[str], kind: str) -> tuple[Recipe, list[Notice]]:
    smaller = recipe.without_formats(names)
    return smaller, [] if smaller == recipe else [notice(kind, formats=names)]
