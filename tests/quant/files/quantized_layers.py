"""Quantized layers to read: one of every format, whole and small."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_state_dict
from calibrated_rounding.quant.formats import FORMATS
from comfy_kitchen.tensor import base

Tensors = dict[str, torch.Tensor]

SHAPE = (128, 256)
E4M3 = torch.float8_e4m3fn

FLOAT = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(3))


def json_tensor(value: object) -> torch.Tensor:
    """A JSON value as the bytes of a marker."""
    return byte_tensor(json.dumps(value).encode())


def byte_tensor(data: bytes) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def layer(marker: Mapping[str, Any] | None, name: str = "l", **parts: torch.Tensor) -> Tensors:
    """The tensors of one layer, with a marker if one is given."""
    marked = {} if marker is None else {"comfy_quant": json_tensor(marker)}
    return {f"{name}.{part}": tensor for part, tensor in {**parts, **marked}.items()}


def written(fmt: str) -> Tensors:
    """`FLOAT` in a format that this pack writes."""
    tensors, _ = quantize_state_dict({"l.weight": FLOAT}, Recipe(format=fmt, profile="generic", heuristics=False))
    return tensors


def recognised() -> dict[str, Tensors]:
    """Layers of codes of less than a byte, as comfy-kitchen's layouts have them."""
    rows, columns = SHAPE
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) + 0.5

    groups = {"weight_s_rel": draw(rows, columns // 16).to(E4M3), "weight_s_channel": draw(rows)}
    swizzled = draw(rows, columns // 16).to(E4M3)
    zeros = draw(columns // 64, rows).bfloat16()
    half = torch.randint(-128, 128, (rows, columns // 2), generator=generator).to(torch.int8)
    three_quarters = torch.randint(-128, 128, (rows, columns * 3 // 4), generator=generator).to(torch.int8)
    return {
        "nvfp4": layer(
            {"format": "nvfp4"},
            weight=half.view(torch.uint8),
            weight_scale=swizzled,
            weight_scale_2=draw(1)[0],
            pre_quant_scale=draw(columns),
        ),
        "convrot_w4a4": layer(
            {"format": "convrot_w4a4", "convrot_groupsize": 256, "linear_dtype": "int8"},
            weight=half,
            weight_scale=draw(rows),
        ),
        "asym_w4a8_int8": layer(
            {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": 256},
            weight=half,
            weight_codebook=draw(16).sort().values,
            **groups,
        ),
        "w6a8_int8": layer(
            {"format": "w6a8_int8", "group_size": 16, "convrot": True, "convrot_groupsize": 256},
            weight=three_quarters,
            **groups,
        ),
        "awq_w4a16": layer(
            {"format": "awq_w4a16", "group_size": 64}, weight=half, weight_scale=zeros + 1, weight_zeros=zeros
        ),
    }


def dequantize_with_layout(name: str) -> torch.Tensor:
    """The weight of a layer of `recognised`, as comfy-kitchen's layout decodes it."""
    parts = {key.removeprefix("l."): tensor for key, tensor in recognised()[name].items()}
    layout, params = {
        "nvfp4": ("TensorCoreNVFP4Layout", {"scale": "weight_scale_2", "block_scale": "weight_scale"}),
        "convrot_w4a4": ("TensorCoreConvRotW4A4Layout", {"scale": "weight_scale"}),
        "asym_w4a8_int8": (
            "AsymW4A8Int8Layout",
            {"scale": "weight_s_rel", "s_channel": "weight_s_channel", "codebook": "weight_codebook"},
        ),
        "w6a8_int8": ("AsymW4A8Int8Layout", {"scale": "weight_s_rel", "s_channel": "weight_s_channel"}),
        "awq_w4a16": ("TensorCoreAWQW4A16Layout", {"scale": "weight_scale", "zeros": "weight_zeros"}),
    }[name]
    if layout not in base.LAYOUTS:
        pytest.skip(f"this comfy-kitchen has no {layout}")
    kind = base.LAYOUTS[layout]
    tensors = {field: parts[part].float() if name == "awq_w4a16" else parts[part] for field, part in params.items()}
    weight = kind.dequantize(parts["weight"], kind.Params(orig_dtype=torch.float32, orig_shape=SHAPE, **tensors))
    return weight * parts.get("pre_quant_scale", torch.ones(()))


def block_fp8() -> Tensors:
    """`FLOAT` as transformers stores FP8 with a scale for each 128 x 128 block."""
    blocks = FLOAT.view(1, 128, 2, 128)
    scale = blocks.abs().amax(dim=(1, 3)) / 448
    codes = (FLOAT / scale.repeat_interleave(128, 0).repeat_interleave(128, 1)).to(E4M3)
    return layer(None, weight=codes, weight_scale_inv=scale)


def every_layer() -> dict[str, Tensors]:
    return {**{name: written(name) for name in FORMATS}, **recognised(), "block_fp8": block_fp8()}
