"""How layers of formats are decoded that this pack reads and does not write."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .group_scales import by_group
from .packing import NIBBLES

Tensors = Mapping[str, Tensor]
"""The tensors of a layer, by name within it."""

Decode = Callable[[Tensors], Tensor]
"""The weight that the tensors of a layer stand for: float32 ``[N, K]``, padded and rotated as it is stored."""


def decode_signed(tensors: Tensors) -> Tensor:
    """``convrot_w4a4``: signed nibbles times a scale for each row."""
    codes = NIBBLES.load(tensors["weight"]).to(torch.float32)
    return (codes - 16 * (codes > 7)) * tensors["weight_scale"].to(torch.float32).reshape(-1, 1)


def decode_affine(tensors: Tensors, group: int) -> Tensor:
    """``awq_w4a16``: nibbles around 8 times a scale, plus a zero point, for each group of inputs."""
    codes = by_group(NIBBLES.load(tensors["weight"]).to(torch.float32), group)
    scale, zero = (tensors[name].to(torch.float32).T[..., None] for name in ("weight_scale", "weight_zeros"))
    return ((codes - 8) * scale + zero).flatten(1)


def scale_inputs(decode: Decode) -> Decode:
    """A decoder of layers whose inputs ComfyUI multiplies by ``pre_quant_scale`` first: the weight with it."""

    def scaled(tensors: Tensors) -> Tensor:
        weight, factor = decode(tensors), tensors.get("pre_quant_scale")
        return weight if factor is None else weight.mul_(factor.to(torch.float32))

    return scaled
