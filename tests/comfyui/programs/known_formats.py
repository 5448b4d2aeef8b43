"""Which formats a ComfyUI knows, with the pack and without."""

from __future__ import annotations

from functools import partial

import comfy.quant_ops
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import load_unet
from calibrated_rounding.tools.comfyui.inside.pack import load_extension, quantize_model


def list_formats_without_pack() -> list[str]:
    return [name for name, fmt in FORMATS.items() if fmt.comfyui_name in comfy.quant_ops.QUANT_ALGOS]


def list_known_formats() -> list[str]:
    load_extension()
    return list_formats_without_pack()


def refuse_format(source: str, fmt: str) -> str:
    """The error of Quantize Model with a format."""
    load_extension()
    model, _ = load_unet(source)
    return error_message(partial(quantize_model, model, fmt))
