"""Which formats a ComfyUI knows, with the pack and without."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import comfy.quant_ops
import folder_paths
import torch
from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import load_unet, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import NEAREST, call, layer_rows, load_extension, quantize_model
from calibrated_rounding.tools.comfyui.inside.sampling import sample_briefly
from torch import Tensor


def list_formats_without_pack() -> list[str]:
    return [name for name, fmt in FORMATS.items() if fmt.comfyui_name in comfy.quant_ops.QUANT_ALGOS]


def list_known_formats() -> list[str]:
    load_extension()
    return list_formats_without_pack()


def choose_formats(source: str, formats: list[str]) -> dict[str, Any]:
    """The formats that Quantize Model's ``auto`` chooses for a model's layers, and what it says."""
    load_extension()
    node = quantize_model(load_unet(source)[0], "auto", recipe=Recipe(format="auto", formats=tuple(formats)))
    return {"formats": sorted({row["format"] for row in layer_rows(node)}), "text": node.ui["text"][0]}


def convert_int8(source: str, table: Tensor, formats: list[str]) -> dict[str, Any]:
    """Quantize to INT8 ConvRot, save, load it, and quantize this MODEL and its file to each format."""
    extension = load_extension()
    folder_paths.set_output_directory(os.path.abspath("output"))
    model = load_unet(source)[0]
    reference = sample_briefly(model, table)
    int8 = quantize_model(model, "int8_convrot").args[0]
    path = call(extension.SaveQuantizedModel, model=int8, filename_prefix="diffusion_models/int8").args[0]
    loaded = load_unet(path)[0]
    file = f"diffusion_models/{os.path.basename(path)}"

    def convert(fmt: str) -> dict[str, Any]:
        node = quantize_model(loaded, fmt)
        latents = sample_briefly(node.args[0], table)
        settings = {"format": fmt, "profile": "auto", "rounding": NEAREST}
        written = call(extension.QuantizeFile, file=file, name=f"converted_{fmt}", **settings).args[0]
        return {
            "text": node.ui["text"][0],
            "formats": sorted({row["format"] for row in layer_rows(node)}),
            "error": relative_error(latents, reference),
            "float_error": relative_error(sample_briefly(quantize_model(model, fmt).args[0], table), reference),
            "file_equal": torch.equal(latents, sample_briefly(load_unet(written)[0], table)),
        }

    refused = error_message(partial(quantize_model, loaded, "float8_e4m3fn"))
    return {"formats": {fmt: convert(fmt) for fmt in formats}, "refused": refused}


def refuse_format(source: str, fmt: str) -> str:
    """The error of Quantize Model with a format."""
    load_extension()
    model, _ = load_unet(source)
    return error_message(partial(quantize_model, model, fmt))
