"""Program of test_joint_size.py."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

import folder_paths
import torch
from calibrated_rounding.nodes.page import live
from calibrated_rounding.quant.planning import candidates
from calibrated_rounding.tools.comfyui.inside.calls import count_calls
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import describe_quantized_layers, load_unet
from calibrated_rounding.tools.comfyui.inside.pack import call, layer_rows, load_extension
from calibrated_rounding.tools.comfyui.inside.sampling import conditions, sample_briefly
from torch import Tensor

extension = load_extension()

PROMPTS = "a seven\nthe number four, ink on paper\na handwritten digit nine\nplease draw a two"


def quantize_to_size(source: str, encoder: str, table: Tensor, gigabytes: float) -> dict[str, Any]:
    """Quantize the shipped model and text encoder to a size together, calibrated and not; save and reload both."""
    folder_paths.set_output_directory(os.path.abspath("output"))
    folder_paths.add_model_folder_path("text_encoders", os.path.abspath("output/clip"))
    model, clip = load_unet(source)[0], load_encoder(encoder)
    calibrations = {
        "model_calibration": call(
            extension.CalibrateModel, model=model, **conditions(table, 4),
            latent_image={"samples": torch.zeros(4, 16, 1, 8, 8)}, seed=1, runs=1, steps=4, cfg=2.0,
            sampler_name="euler", scheduler="simple", rows=128, budget_gib=1.0, probe_steps=0,
        ).args[0],
        "clip_calibration": call(
            extension.CalibrateTextEncoder, clip=clip, prompts=PROMPTS, rows=128, budget_gib=1.0
        ).args[0],
    }  # fmt: skip

    def quantize(size: float, **inputs: Any) -> Any:
        return call(extension.QuantizeToSize, model=model, clip=clip, gigabytes=size, **inputs)

    seen = list[Any]()
    show = live.NodeProgress.show
    with patch.object(live.NodeProgress, "show", lambda self, found: (seen.extend(found), show(self, found))):
        uncalibrated = describe(quantize(gigabytes), table)
    with count_calls(candidates, "quantize_layer") as measured_again:
        smaller = quantize(0.97 * gigabytes).ui["calibrated_rounding"][0]["totals"]["bytes_after"]
    named = call(extension.QuantizationRecipe, format="int8_row", profile="auto", rounding={"rounding": "nearest"})
    return {
        "calibrated": describe(quantize(gigabytes, **calibrations), table),
        "uncalibrated": uncalibrated,
        "progress": [(progress.stage, progress.done, progress.total) for progress in seen],
        "measured_again": len(measured_again),
        "smaller": smaller,
        "again": quantize(gigabytes).ui["text"][0],
        "too_small": error_message(lambda: quantize(0.001)),
        "named_format": error_message(lambda: quantize(gigabytes, recipe=named.args[0])),
    }


def load_encoder(path: str) -> Any:
    return call(extension.LoadExampleTextEncoder, file=os.path.basename(path)).args[0]


def encode(clip: Any) -> Tensor:
    return clip.encode_from_tokens_scheduled(clip.tokenize("a handwritten five"))[0][0]


def describe(node: Any, table: Tensor) -> dict[str, Any]:
    model, clip, report = node.args
    paths = {
        "model": call(extension.SaveQuantizedModel, model=model, filename_prefix="diffusion_models/joint").args[0],
        "clip": call(extension.SaveQuantizedTextEncoder, clip=clip, filename_prefix="clip/joint").args[0],
    }
    latents, encoding = sample_briefly(model, table), encode(clip)
    shown = node.ui["calibrated_rounding"][0]
    return {
        "rows": layer_rows(node),
        "report": report,
        "totals": shown["totals"],
        "precision": shown["precision"],
        "quantized": len(describe_quantized_layers(model.model))
        + len(describe_quantized_layers(clip.cond_stage_model)),
        "model_equal": torch.equal(latents, sample_briefly(load_unet(paths["model"])[0], table)),
        "clip_equal": torch.equal(encoding, encode(load_encoder(paths["clip"]))),
        "paths": paths,
    }
