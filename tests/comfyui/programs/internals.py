"""Programs of test_internals.py."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import comfy_api.torch_helpers
import comfy_execution.graph_utils
import torch
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import capture_warnings, load_unet, random_lora
from calibrated_rounding.tools.comfyui.inside.pack import call, load_extension, quantize_model
from calibrated_rounding.tools.comfyui.inside.sampling import conditions
from comfy.nested_tensor import NestedTensor
from torch import Tensor


def preview_nested(source: str) -> dict[str, Any]:
    """Show the steps of a sampling of one stream and of several, with previews on."""
    from calibrated_rounding.nodes.host.sampling import SamplingBar
    from comfy.cli_args import LatentPreviewMethod, args

    args.preview_method = LatentPreviewMethod.Latent2RGB
    previews = list[bool]()
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id: previews.append(bool(preview)))
    model, _ = load_unet(source)
    show = SamplingBar(1, 2, None).follow(model, 0)
    video, sound = torch.randn(1, 16, 1, 8, 8), torch.randn(1, 8, 4)
    show(0, video, video, 2)
    nested = NestedTensor([video, sound])
    show(1, nested, nested, 2)
    return {"previews": previews}


def merge_weights(source: str) -> dict[str, Any]:
    """Quantize a llama-style encoder whose attention has other names than its file."""
    from calibrated_rounding.nodes.host.encoders import find_runnable_parts
    from calibrated_rounding.nodes.nodes_example_encoder import load

    clip = load(source)
    attention = next(m for name, m in clip.cond_stage_model.named_modules() if name.endswith("layers.0.self_attn"))
    attention.qkv_proj = attention._modules.pop("k_proj")
    return {"refusal": error_message(lambda: find_runnable_parts(clip))}


def copy_markers() -> dict[str, Any]:
    """Copy tensors to a device other than the CPU."""
    from calibrated_rounding.nodes.host.rebuilding import copy_tensors

    tensors = {
        "layer.weight": torch.zeros(4, 4, dtype=torch.int8),
        "packed.weight": torch.zeros(4, 4, dtype=torch.uint8),
        "layer.comfy_quant": torch.tensor(list(b"{}"), dtype=torch.uint8),
        "block.comfy_attention.config": torch.tensor(list(b"{}"), dtype=torch.uint8),
    }
    copies = copy_tensors(tensors, torch.device("meta"))
    return {name: copy.device.type for name, copy in copies.items()}


def lose_symbols(source: str, table: Tensor) -> dict[str, Any]:
    """Load and use the pack in a ComfyUI that has renamed what it uses for single features."""
    model, _ = load_unet(source)
    bypassed = comfy.sd.load_bypass_lora_for_models(model, None, random_lora(model, r"blocks\.0\.ffn"), 1.0, 0.0)[0]
    compile_model = comfy_api.torch_helpers.set_torch_compile_wrapper
    del comfy_api.torch_helpers.set_torch_compile_wrapper
    del comfy_execution.graph_utils.ExecutionBlocker
    del comfy.weight_adapter.BypassInjectionManager
    with capture_warnings() as warnings:
        extension = load_extension()
        quantized = [quantize_model(model, "int8_row").args[0] for _ in range(2)]
        settings = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "seeds": "1"}
        latent = {"samples": torch.zeros(1, 16, 1, 8, 8)}
        node = call(
            extension.CompareModels, reference=model, candidate=quantized[0], latent_image=latent,
            **settings, **conditions(table, 1),
        )  # fmt: skip
        compiled = model.clone()
        compile_model(compiled, backend="eager")
        refusals = [error_message(partial(quantize_model, patched, "int8_row")) for patched in (compiled, bypassed)]
    return {
        "picture": node.args[0],
        "refusals": refusals,
        "warnings": [text for text in warnings if "this ComfyUI has no" in text],
    }


def ask_devices() -> dict[str, Any]:
    """Whether formats are emulated: on a device without INT8, where ComfyUI can tell, and without these functions."""
    from calibrated_rounding.nodes.host import machine
    from calibrated_rounding.quant.formats import FORMATS

    def emulated() -> list[str]:
        return [name for name, fmt in FORMATS.items() if fmt.needs_full_precision or machine.computes(fmt) is False]

    management = SimpleNamespace(get_torch_device=lambda: torch.device("cpu"))
    machine.comfy = SimpleNamespace(model_management=management)
    none_known = emulated()
    management.supports_int8_compute = lambda device: False
    return {"none known": none_known, "no int8": emulated()}
