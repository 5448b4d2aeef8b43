"""Programs of test_files.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy_kitchen
import folder_paths
import nodes
import torch
from calibrated_rounding.tools.comfyui.inside.models import describe_quantized_layers, load_unet
from calibrated_rounding.tools.comfyui.inside.pack import load_extension
from calibrated_rounding.tools.comfyui.inside.sampling import sample
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_model_merging import ModelSave
from torch import Tensor


def sample_files(paths: dict[str, str], table: Tensor, saved: str) -> dict[str, Any]:
    """Load files without the pack, sample each, and save it with ModelSave into the folder ``saved``."""
    folder_paths.set_output_directory(saved)
    return {name: sample_file(path, table, name) for name, path in paths.items()}


def sample_files_with_pack(paths: dict[str, str], table: Tensor, saved: str) -> dict[str, Any]:
    load_extension()
    return sample_files(paths, table, saved)


def sample_where_cuda_refuses(path: str, table: Tensor) -> dict[str, Any]:
    """Sample a file where products of E5M2 by E5M2 are refused, as on CUDA."""
    torch._scaled_mm = _refusing(torch._scaled_mm)
    torch.nn.functional.scaled_mm = _refusing(torch.nn.functional.scaled_mm)  # PyTorch 2.10 and later
    model, _ = load_unet(path)
    return {"latents": sample(model, table, seed=0)}


def run_layer_with_nvfp4_units(path: str, layer: str, rows: Tensor, table: Tensor) -> dict[str, Any]:
    """Load a file as on a card that multiplies NVFP4; run one of its layers, and sample the model."""
    comfy.model_management.supports_nvfp4_compute = lambda device=None: True
    comfy_kitchen.scaled_mm_nvfp4 = _multiply_nvfp4
    model, warnings = load_unet(path)
    module = model.model.diffusion_model.get_submodule(layer)
    with torch.inference_mode():
        outputs = module(rows)
    return {
        "warnings": warnings,
        "input_scale": getattr(module, "input_scale", None),
        "outputs": outputs,
        "latents": sample(model, table, seed=0),
    }


def _multiply_nvfp4(
    a: Tensor,
    b: Tensor,
    *,
    tensor_scale_a: Tensor,
    tensor_scale_b: Tensor,
    block_scale_a: Tensor,
    block_scale_b: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype,
) -> Tensor:
    """The product of 4-bit operands, which torch does not compute on a CPU."""
    scales = ((tensor_scale_a, block_scale_a), (tensor_scale_b, block_scale_b))
    rows, weight = (
        comfy_kitchen.dequantize_nvfp4(codes, *scale, torch.float32)
        for codes, scale in zip((a, b), scales, strict=True)
    )
    return torch.nn.functional.linear(rows, weight, None if bias is None else bias.float()).to(out_dtype)


def _refusing(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def multiply(a: Tensor, b: Tensor, *args: Any, **options: Any) -> Tensor:
        if a.dtype == b.dtype == torch.float8_e5m2:
            raise ValueError("Multiplication of two Float8_e5m2 matrices is not supported")
        return product(a, b, *args, **options)

    return multiply


def sample_file(path: str, table: Tensor, name: str) -> dict[str, Any]:
    model, warnings = load_unet(path)
    layers = describe_quantized_layers(model.model.diffusion_model)
    latents = sample(model, table, seed=0)
    ModelSave().save(model, name)
    return {"warnings": warnings, "layers": layers, "latents": latents}


def sample_checkpoint(folder: str, name: str, table: Tensor) -> dict[str, Any]:
    folder_paths.add_model_folder_path("checkpoints", folder)
    model, _, _ = nodes.CheckpointLoaderSimple().load_checkpoint(name)
    layers = describe_quantized_layers(model.model.diffusion_model)
    return {"layers": list(layers), "latents": sample(model, table, seed=0)}


def quantize_weight(weight: Tensor, formats: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Tensor]]:
    """Quantize a weight with ComfyUI's layouts; returns each format's tensors, one-byte types as uint8.

    Args:
        weight: Float ``[N, K]``.
        formats: Name -> layout and its options.
    """
    results = {}
    for name, (layout, options) in formats.items():
        tensors = QuantizedTensor.from_float(weight.clone(), layout, **options).state_dict("weight")
        results[name] = {
            key: tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor for key, tensor in tensors.items()
        }
    return results
