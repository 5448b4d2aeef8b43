"""Program of test_blockwise.py: files loaded, sampled, patched, saved and broken."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import comfy.memory_management
import comfy.ops
import comfy.utils
import folder_paths
import nodes
import torch
from calibrated_rounding.tools.comfyui.inside.calls import count_calls
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import apply_lora, load_unet, random_lora, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import load_extension
from calibrated_rounding.tools.comfyui.inside.sampling import sample_briefly
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_model_merging import ModelSave
from torch import Tensor

LORA = r"(self_attn\.q|ffn\.2)\.weight$"
BROKEN = {
    "scale": {"weight_scale": torch.ones(4, 1)},
    "size": {"comfy_quant": torch.tensor(list(b'{"format": "int8_blockwise", "group_size": 32}'), dtype=torch.uint8)},
    "field": {"comfy_quant": torch.tensor(list(b'{"format": "int8_blockwise", "quarot": true}'), dtype=torch.uint8)},
    "shape": {"weight": torch.zeros(128, 256, dtype=torch.int8)},
}
"""Tensors of one layer that do not fit its others."""


def use_files(files: dict[str, str], table: Tensor, output: str) -> dict[str, Any]:
    """Load, sample, patch, save and break block-wise files with the pack; then unregister the format."""
    folder_paths.set_output_directory(output)
    folder_paths.add_model_folder_path("checkpoints", os.path.dirname(files["checkpoint"]))
    functions = (comfy.ops._load_quantized_module, comfy.ops._quantized_weight_state_dict)
    without_pack = error_message(lambda: load_unet(files["ours"]), with_type=True)
    load_extension()
    from calibrated_rounding.kernels.layouts import operations
    from calibrated_rounding.nodes.host import registration, six_bits

    source, _ = load_unet(files["source"])
    model, warnings = load_unet(files["ours"])
    with count_calls(operations.ops, "block_linear") as calls:
        latents = sample_briefly(model, table)
    other, other_warnings = load_unet(files["convert_to_quant"])
    checkpoint, _, _ = nodes.CheckpointLoaderSimple().load_checkpoint(os.path.basename(files["checkpoint"]))
    return {
        "without_pack": without_pack,
        "warnings": warnings,
        "layers": len(quantized_weights(model)),
        "calls": len(calls),
        "error": relative_error(latents, sample_briefly(source, table)),
        "convert_to_quant": {
            "warnings": other_warnings,
            "equal": torch.equal(latents, sample_briefly(other, table)),
        },
        "checkpoint_equal": torch.equal(latents, sample_briefly(checkpoint, table)),
        "lora": patch_with_lora(model, source, table, output),
        "without_lora_again": torch.equal(sample_briefly(model, table), latents),
        **copy_weight(next(iter(quantized_weights(model).values()))),
        "fallbacks": sorted(operations._warned),
        "broken": {name: load_broken(files["ours"], name, output) for name in BROKEN},
        **unregister_and_register(registration, six_bits, functions, files["ours"], table, latents),
    }


def quantized_weights(model: Any) -> dict[str, Any]:
    parameters = model.model.diffusion_model.named_parameters()
    return {name: weight for name, weight in parameters if isinstance(weight, QuantizedTensor)}


def describe_storage(model: Any) -> dict[str, list[str]]:
    """Dtypes and shapes of the codes and scales of every layer."""
    parts = {name: (weight._qdata, weight._params.scale) for name, weight in quantized_weights(model).items()}
    return {name: [f"{part.dtype} {tuple(part.shape)}" for part in pair] for name, pair in parts.items()}


def patch_with_lora(model: Any, source: Any, table: Tensor, output: str) -> dict[str, Any]:
    """Sample with a LoRA, save the model with it, and sample the saved file."""
    lora = random_lora(source, LORA)
    reference, without = sample_briefly(apply_lora(source, lora), table), sample_briefly(source, table)
    storage = describe_storage(model)
    patched = apply_lora(model, lora)
    latents = sample_briefly(patched, table)
    same_storage = describe_storage(patched) == storage
    ModelSave().save(patched, "diffusion_models/merged")
    sampled_again = torch.equal(sample_briefly(patched, table), latents)
    saved, _ = load_unet(f"{output}/diffusion_models/merged_00001_.safetensors")
    return {
        "error": relative_error(latents, reference),
        "effect": relative_error(without, reference),
        "same_storage": same_storage,
        "sampled_again": sampled_again,
        "saved_equal": torch.equal(sample_briefly(saved, table), latents),
    }


def copy_weight(weight: Any) -> dict[str, bool]:
    """Requantize, copy and gather a weight as ComfyUI's dynamic VRAM does."""
    weight = QuantizedTensor(weight._qdata, weight._layout_cls, weight._params)
    fresh = weight.requantize_from_float(
        weight.dequantize(), scale="recalculate", stochastic_rounding=7, inplace_ops=True
    )
    copied = torch.equal(torch.empty_like(weight).copy_(fresh).dequantize(), fresh.dequantize())
    size = comfy.memory_management.vram_aligned_size([weight])
    (view,) = comfy.memory_management.interpret_gathered_like([weight], torch.zeros(size, dtype=torch.uint8))
    view.copy_(weight)
    gathered = torch.equal(view.dequantize(), weight.dequantize()) and view._params.block_size == 128
    return {"copied": copied, "gathered": gathered}


def load_broken(path: str, name: str, output: str) -> str | None:
    """Load a copy of a file with a layer that does not fit; returns the error."""
    tensors, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    metadata = {key: text for key, text in metadata.items() if key != "_quantization_metadata"}
    changed = {f"blocks.1.ffn.0.{key}": tensor for key, tensor in BROKEN[name].items()}
    target = os.path.join(output, f"{name}.safetensors")
    comfy.utils.save_torch_file(tensors | changed, target, metadata)
    return error_message(lambda: load_unet(target), with_type=True)


def unregister_and_register(
    registration: ModuleType,
    six_bits: ModuleType,
    functions: tuple[Any, Any],
    path: str,
    table: Tensor,
    latents: Tensor,
) -> dict[str, Any]:
    # Wrappers come off in the reverse order of their registration.
    six_bits.unregister()
    registration.unregister()
    restored = functions == (comfy.ops._load_quantized_module, comfy.ops._quantized_weight_state_dict)
    unregistered = error_message(lambda: load_unet(path), with_type=True)
    registration.register()
    six_bits.register()
    return {
        "functions_restored": restored,
        "unregistered": unregistered,
        "registered_again": torch.equal(sample_briefly(load_unet(path)[0], table), latents),
    }
