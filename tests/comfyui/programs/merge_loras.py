"""Programs of test_merge_loras.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.lora
import comfy.sd
import folder_paths
import torch
from calibrated_rounding.nodes.host.origin import read_diffusion_tensors, read_origin
from calibrated_rounding.tests.comfyui.programs import small_encoders
from calibrated_rounding.tools.comfyui.inside.calls import count_calls
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import apply_lora, load_unet, random_lora, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import (
    CALIBRATED,
    call,
    layer_rows,
    load_extension,
    quantize_encoder,
    quantize_model,
)
from calibrated_rounding.tools.comfyui.inside.sampling import sample_briefly
from comfy_extras.nodes_model_merging import ModelSave
from safetensors.torch import load_file, save_file
from torch import Tensor

extension = load_extension()

LORA = r"(self_attn\.q|ffn\.2|patch_embedding|head\.head)\.weight$"
"""Quantized layers, and a layer that stays in float."""
OTHER = r"self_attn\.k\.weight$"


def merge_into_model(source: str, table: Tensor, output: str, fmt: str) -> dict[str, Any]:
    """Merge a LoRA, quantize to nearest and calibrated, save and reload, and put another LoRA on top."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    sample = partial(sample_briefly, table=table)
    plain, patched = sample(model), apply_lora(model, random_lora(model, LORA))
    float_latents = sample(patched)
    calibration, other = record(patched, table), record(model, table)
    path = call(extension.SaveCalibration, calibration=calibration, name="patched").args[0]
    ModelSave().save(patched, "diffusion_models/float")
    with count_calls(comfy.lora, "calculate_weight") as merges:
        nearest = quantize_model(patched, fmt, merge_loras=True)
    nearest_merges = len(merges)
    calibrated = quantize_model(patched, fmt, CALIBRATED, calibration=calibration, merge_loras=True)
    kept = quantize_model(patched, fmt, CALIBRATED, calibration=calibration)
    again = quantize_model(patched, fmt, CALIBRATED, calibration=calibration, merge_loras=True)
    stronger = apply_lora(patched, random_lora(model, r"ffn\.0\.weight$"))
    return {
        "float_file": f"{output}/diffusion_models/float_00001_.safetensors",
        "calibration_file": path,
        "effect": relative_error(plain, float_latents),
        "nearest": use(nearest, "nearest", sample, float_latents),
        "calibrated": use(calibrated, "calibrated", sample, float_latents),
        "kept": {**use(kept, "kept", sample, float_latents), "lost": lost_layers(kept)},
        "none": quantize_model(model, fmt, merge_loras=True).ui["text"][0],
        "top": patch_on_top(calibrated.args[0], model, sample),
        "again": again.ui["text"][0],
        "errors": {
            "recorded without": error_message(
                partial(quantize_model, patched, fmt, CALIBRATED, calibration=other, merge_loras=True)
            ),
            "recorded with others": error_message(
                partial(quantize_model, stronger, fmt, CALIBRATED, calibration=calibration, merge_loras=True)
            ),
            "quantized": error_message(partial(quantize_model, kept.args[0], fmt, dequantize=True, merge_loras=True)),
        },
        "source_patches": len(patched.patches),
        "merges": nearest_merges,
        "source_equal": torch.equal(float_latents, sample(patched)) and torch.equal(plain, sample(model)),
    }


def record(model: Any, table: Tensor) -> Any:
    recording, recorder = call(extension.RecordCalibration, model=model, rows=2048, budget_gib=1.0).args
    sample_briefly(recording, table)
    return call(extension.CollectCalibration, recorder=recorder, after=None).args[0]


def use(node: Any, name: str, sample: Any, reference: Tensor) -> dict[str, Any]:
    """Sample a quantized model, save it, and sample the saved file."""
    model = node.args[0]
    latents = sample(model)
    path = call(extension.SaveQuantizedModel, model=model, filename_prefix=f"diffusion_models/{name}").args[0]
    copy = model.clone(force_deepcopy=True)
    return {
        "path": path,
        "patches": len(model.patches),
        "error": relative_error(latents, reference),
        "reloaded_equal": torch.equal(latents, sample(load_unet(path)[0])),
        "copy_equal": torch.equal(latents, sample(copy)),
        "report": node.args[1],
        "text": node.ui["text"][0],
    }


def lost_layers(node: Any) -> list[str]:
    """The layers that the report marks as rounded again."""
    rows = layer_rows(node)
    return [row["name"] for row in rows if any(note["kind"] == "patched" for note in row["notes"])]


def patch_on_top(model: Any, source: Any, sample: Any) -> dict[str, bool]:
    """Put another LoRA on a quantized model, and take it off again."""
    before, codes = sample(model), read_codes(model)
    patched = apply_lora(model, random_lora(source, OTHER))
    changed = not torch.equal(before, sample(patched))
    after = sample(model)
    return {
        "changes": changed,
        "removed": torch.equal(before, after),
        "codes_equal": all(torch.equal(codes[name], codes_now) for name, codes_now in read_codes(model).items()),
    }


def read_codes(model: Any) -> dict[str, Tensor]:
    tensors = read_diffusion_tensors(read_origin(model))
    return {name: tensor.clone() for name, tensor in tensors.items() if name.endswith(".weight")}


T5_LAYER = "encoder.block.0.layer.0.SelfAttention.q.weight"
CLIP_LAYER = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"


def merge_into_encoder(output: str) -> dict[str, Any]:
    """Merge patches into the T5-XXL of Flux, beside its CLIP-L; its file is also written with the patch merged."""
    folder_paths.set_output_directory(output)
    torch.manual_seed(0)
    t5, clip_l, merged_file = (f"{output}/{name}.safetensors" for name in ("t5", "clip_l", "merged"))
    small_encoders.save_random(t5, small_encoders.build_t5())
    small_encoders.save_random(clip_l, small_encoders.build_clip_l())
    options = {"t5xxl_model_config": small_encoders.NARROW_T5}
    clip = comfy.sd.load_clip([clip_l, t5], clip_type=comfy.sd.CLIPType.FLUX, model_options=options)
    tensors, t5_key = load_file(t5), f"t5xxl.transformer.{T5_LAYER}"
    weights = clip.patcher.model.state_dict()
    patches = {key: torch.randn(weights[key].shape) * 0.02 for key in (t5_key, CLIP_LAYER)}
    patched = clip.clone()
    patched.add_patches({key: ("diff", (patch,)) for key, patch in patches.items()}, 0.5)
    merged = (tensors[T5_LAYER].float() + 0.5 * patches[t5_key]).bfloat16()
    save_file(tensors | {T5_LAYER: merged}, merged_file)
    calibration, other = calibrate(patched), calibrate(clip)
    # To nearest, as the T5 is too wide for calibrated rounding in a test; the calibration must fit all the same.
    node = quantize_encoder(patched, "int8_row", calibration=calibration, merge_loras=True)
    kept = quantize_encoder(patched, "int8_row")
    saved = call(extension.SaveQuantizedTextEncoder, clip=node.args[0], filename_prefix="clip/merged").args[0]
    refused = partial(quantize_encoder, patched, "int8_row", calibration=other, merge_loras=True)
    return {
        "merged_file": merged_file,
        "path": saved,
        "patches": list(node.args[0].patcher.patches),
        "patches_kept": sorted(kept.args[0].patcher.patches),
        "source_patches": len(patched.patcher.patches),
        "report": node.args[1],
        "lost": lost_layers(kept),
        "error": error_message(refused),
    }


def calibrate(clip: Any) -> Any:
    node = extension.CalibrateTextEncoder
    return call(node, clip=clip, prompts="a handwritten seven\na cat", rows=64, budget_gib=0.1).args[0]
