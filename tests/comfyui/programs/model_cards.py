"""Program of test_model_cards.py."""

from __future__ import annotations

import os
from typing import Any

import folder_paths
import torch
from calibrated_rounding.tools.comfyui.inside.models import apply_lora, load_unet, random_lora
from calibrated_rounding.tools.comfyui.inside.pack import (
    CALIBRATED,
    call,
    load_extension,
    quantize_encoder,
    quantize_model,
)
from calibrated_rounding.tools.comfyui.inside.sampling import conditions
from torch import Tensor

extension = load_extension()

PROMPTS = "a seven\nthe number four, ink on paper\na handwritten digit nine\nplease draw a two"


def write_cards(source: str, encoder: str, table: Tensor) -> dict[str, Any]:
    """The cards of a model that was saved with one file of weights in several ways, and of a text encoder."""
    folder_paths.set_output_directory(os.path.abspath("output"))
    model = load_unet(source)[0]
    calibration = call(
        extension.CalibrateModel, model=model, **conditions(table, 4),
        latent_image={"samples": torch.zeros(4, 16, 1, 8, 8)}, seed=1, runs=1, steps=4, cfg=2.0,
        sampler_name="euler", scheduler="simple", rows=128, budget_gib=1.0, probe_steps=0,
    ).args[0]  # fmt: skip
    first, again = (quantize_model(model, "int8_row", CALIBRATED, calibration=calibration) for _ in range(2))
    quantized = first.args[0]
    card, path = save(quantized)
    shown = first.ui["calibrated_rounding"][0]
    return {
        "totals": shown["totals"],
        "digest": calibration.digest,
        "saved": card,
        "clone": save(quantized.clone())[0],
        "patched": save(apply_lora(quantized, random_lora(quantized, r"ffn\.2\.weight$")))[0],
        "from_disk": again.ui["calibrated_rounding"][0]["from_disk"],
        "cached": save(again.args[0])[0],
        "reloaded": save(load_unet(path)[0])[0],
        "float": call(extension.WhatIsThisFile, file="diffusion_models/" + os.path.basename(source)).ui,
        **encode_card(encoder),
    }


def save(model: Any) -> tuple[str, str]:
    """The card and the path of a saved model."""
    node = call(extension.SaveQuantizedModel, model=model, filename_prefix="diffusion_models/card")
    return node.ui["calibrated_rounding"][0]["files"][0]["card"], node.args[0]


def encode_card(path: str) -> dict[str, Any]:
    clip = call(extension.LoadExampleTextEncoder, file=os.path.basename(path)).args[0]
    calibration = call(extension.CalibrateTextEncoder, clip=clip, prompts=PROMPTS, rows=128, budget_gib=1.0).args[0]
    node = quantize_encoder(clip, "int8_row", CALIBRATED, calibration=calibration)
    saved = call(extension.SaveQuantizedTextEncoder, clip=node.args[0], filename_prefix="clip/card")
    return {
        "encoder_totals": node.ui["calibrated_rounding"][0]["totals"],
        "encoder": saved.ui["calibrated_rounding"][0]["files"][0]["card"],
    }
