"""MXFP8 scales: powers of two in the tiled order that cuBLAS reads (OCP Microscaling Formats 1.0; comfy-kitchen's
layout).
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = (128, 4)
BIAS = 127


def swizzled_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape that scales ``[N, K / 32]`` are stored in: whole tiles, each 128 x 4 laid out as 32 x 16."""
    return tuple(-(-size // tile) * tile for size, tile in zip(shape, TILE, strict=True))


def pack_scale(scale: Tensor) -> Tensor:
    """float32 powers of two ``[N, K / 32]`` -> biased exponents, uint8 in `swizzled_shape`.

    uint8 and not ``float8_e8m0fnu``, which older safetensors readers do not know; the host views the bytes as either.
    """
    # Imported here because it brings in all of torch's compiler, which takes longer to load than torch itself.
    from comfy_kitchen.float_utils import to_blocked

    exponent = torch.frexp(scale).exponent - 1 + BIAS
    blocked: Tensor = to_blocked(exponent.to(torch.uint8), flatten=False)
    return blocked.reshape(swizzled_shape(tuple(scale.shape))).contiguous()


def unpack_scale(stored: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The float32 scales ``shape = (N, K / 32)`` from what `pack_scale` gave (or the same bytes as uint8)."""
    from comfy_kitchen.float_utils import from_blocked

    exponent = from_blocked(stored.view(torch.uint8), num_rows=shape[0], num_cols=shape[1])
    return torch.ldexp(torch.ones(shape, device=stored.device), exponent.to(torch.int32) - BIAS)
