"""Programs of test_blockwise.py: the pack beside other packs and on an unknown ComfyUI."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import comfy.ops
import folder_paths
import torch
from calibrated_rounding.tools.comfyui.inside.calls import count_calls
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import capture_warnings, describe_quantized_layers, load_unet
from calibrated_rounding.tools.comfyui.inside.pack import call, load_extension, quantize_model
from calibrated_rounding.tools.comfyui.inside.runner import import_checkout
from calibrated_rounding.tools.comfyui.inside.sampling import sample_briefly
from comfy.quant_ops import QUANT_ALGOS
from comfy_extras.nodes_model_merging import ModelSave
from comfy_kitchen.tensor import base
from torch import Tensor


def meet_other_packs(files: dict[str, str], table: Tensor, output: str) -> dict[str, Any]:
    """Import the pack twice, wrap its functions as another pack would, and give its format to another pack."""
    folder_paths.set_output_directory(output)
    extension = load_extension()
    from calibrated_rounding.nodes.host import registration

    latents = sample_briefly(load_unet(files["ours"])[0], table)

    def sample_equal() -> bool:
        return torch.equal(sample_briefly(load_unet(files["ours"])[0], table), latents)

    return {
        "imported_twice": import_twice(extension, files["source"], sample_equal),
        "wrapped": wrap_functions(registration, files["int8"], sample_equal),
        "taken": take_format(extension, registration),
        "active_with_other_layout": replace_layout(registration),
    }


def import_twice(extension: ModuleType, source: str, sample_equal: Callable[[], bool]) -> dict[str, Any]:
    """Load the pack once more, as another import of the same folder."""

    def registered() -> tuple[Any, ...]:
        return (
            comfy.ops._load_quantized_module,
            QUANT_ALGOS["int8_blockwise"],
            base.LAYOUTS["BlockWiseINT8Layout"],
        )

    before = registered()
    first = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "calibrated_rounding"}
    try:
        import_checkout()
        with capture_warnings() as warnings:
            second = load_extension()
        quantized = quantize_model(load_unet(source)[0], "int8_blockwise")
        return {
            "distinct": second is not extension,
            "unchanged": all(a is b for a, b in zip(before, registered(), strict=True)),
            "warnings": warnings,
            "equal": sample_equal(),
            "layers": quantized.ui["calibrated_rounding"][0]["totals"]["layers"],
        }
    finally:
        sys.modules.update(first)


def wrap_functions(registration: ModuleType, int8: str, sample_equal: Callable[[], bool]) -> dict[str, bool]:
    """Wrap a function of ComfyUI after the pack has, and before; ``int8`` is a file in a stock format."""
    with count_calls(comfy.ops, "_load_quantized_module") as calls:
        outer = comfy.ops._load_quantized_module
        wrapped_by_other = sample_equal() and bool(calls)
        registration.unregister()
        stays_in_chain = comfy.ops._load_quantized_module is outer
        stock, _ = load_unet(int8)
        passes_on = len(describe_quantized_layers(stock.model.diffusion_model)) > 0
        calls.clear()
        registration.register()
        wraps_other = sample_equal()
        load_unet(int8)
        calls_other = len(calls) > 0
        registration.unregister()
        return {
            "wrapped_by_other": wrapped_by_other,
            "stays_in_chain": stays_in_chain,
            "passes_on": passes_on,
            "wraps_other": wraps_other,
            "calls_other": calls_other,
        }


def take_format(extension: ModuleType, registration: ModuleType) -> dict[str, Any]:
    """Register the pack where another pack has its format."""
    theirs = {"storage_t": torch.int8, "parameters": {"weight_scale"}, "comfy_tensor_layout": "TensorWiseINT8Layout"}
    QUANT_ALGOS["int8_blockwise"] = theirs
    function = comfy.ops._load_quantized_module
    with capture_warnings() as warnings:
        registration.register()
    result = {
        "untouched": QUANT_ALGOS["int8_blockwise"] is theirs and comfy.ops._load_quantized_module is function,
        "warnings": warnings,
        "nodes": node_names(extension),
    }
    del QUANT_ALGOS["int8_blockwise"]
    registration.register()
    return result


def replace_layout(registration: ModuleType) -> bool:
    """Ask whether the format is active while another pack's layout has its name."""
    base.LAYOUTS["BlockWiseINT8Layout"], ours = object(), base.LAYOUTS["BlockWiseINT8Layout"]
    active = bool(registration._active())
    base.LAYOUTS["BlockWiseINT8Layout"] = ours
    return active


def node_names(extension: ModuleType) -> list[str]:
    return [node.__name__ for node in asyncio.run(extension.CalibratedRounding().get_node_list())]


def run_with_unknown_loader(files: dict[str, str], table: Tensor, output: str) -> dict[str, Any]:
    """Load the pack where ComfyUI's function for loading layers has an unknown signature, and use the pack's loader."""
    folder_paths.set_output_directory(output)
    folder_paths.add_model_folder_path("diffusion_models", os.path.dirname(files["ours"]))
    folder_paths.add_model_folder_path("diffusion_models", f"{output}/diffusion_models")
    stock = comfy.ops._load_quantized_module
    comfy.ops._load_quantized_module = lambda layer, *, how=None, **more: None
    with capture_warnings() as warnings:
        extension = load_extension()
    names = node_names(extension)
    comfy.ops._load_quantized_module = stock

    def load(path: str) -> Any:
        folder_paths.filename_list_cache.clear()
        return call(extension.LoadBlockwiseModel, file=os.path.basename(path)).args[0]

    model = load(files["ours"])
    latents = sample_briefly(model, table)
    deep = model.clone(force_deepcopy=True)
    ModelSave().save(model, "diffusion_models/again")
    source, _ = load_unet(files["source"])
    result = {
        "warnings": warnings,
        "nodes": names,
        "layers": describe_quantized_layers(model.model.diffusion_model),
        "mixed_layers": describe_quantized_layers(load(files["mixed"]).model.diffusion_model),
        "deep_copy": deep.model is not model.model and torch.equal(sample_briefly(deep, table), latents),
        "saved": f"{output}/diffusion_models/again_00001_.safetensors",
        "saved_equal": torch.equal(sample_briefly(load("again_00001_.safetensors"), table), latents),
        "refused": error_message(lambda: quantize_model(source, "int8_blockwise")),
        "refused_fallback": error_message(lambda: quantize_model(source, "int8_row", fallback="int8_blockwise_64")),
        "refused_unknown": refuse_unknown_format(source),
        "stock_layers": quantize_model(source, "int8_row").ui["calibrated_rounding"][0]["totals"]["layers"],
    }
    from calibrated_rounding.nodes.host import registration

    result["registered_later"] = registration.register()
    result["equal_to_registered"] = torch.equal(sample_briefly(load_unet(files["ours"])[0], table), latents)
    return result


def refuse_unknown_format(source: Any) -> str | None:
    """Quantize to a format that ComfyUI does not list; returns the error."""
    mxfp8 = QUANT_ALGOS.pop("mxfp8")
    try:
        return error_message(lambda: quantize_model(source, "mxfp8"))
    finally:
        QUANT_ALGOS["mxfp8"] = mxfp8
