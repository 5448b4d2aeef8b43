"""INT8 quantization and its inverse: per row, per ``1 x block`` group of a row, and per ``block x block`` weight tile.

A scale is the absolute maximum of its group over 127, at least the smallest normal float32, and 1 if the group is all
zero. Codes are rounded half to even and lie in -127 .. 127. NaN and infinity reach the scale, so they are not hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, pad

MAXIMUM = 127.0
SMALLEST = 2.0**-126

CHUNK_ELEMENTS = 1 << 22
"""Weights that are dequantized at a time."""


def compute_scale(amax: Tensor) -> Tensor:
    """Return the scale of each float32 absolute maximum, in the same shape."""
    return torch.where(amax == 0, torch.ones_like(amax), amax.div(MAXIMUM).clamp(min=SMALLEST))


def encode(x: Tensor, scale: Tensor) -> Tensor:
    """Return int8 codes of float32 ``x``; ``scale`` broadcasts to it."""
    return (x / scale).round_().clamp_(-MAXIMUM, MAXIMUM).to(torch.int8)


def count_groups(length: int, block: int) -> int:
    """Return how many blocks cover a length; the last may be ragged."""
    return -(-length // block)


def act_quant(x: Tensor, block: int | None) -> tuple[Tensor, Tensor]:
    """Quantize a floating activation ``[..., K]``.

    Returns:
        Codes int8 ``[..., K]`` and scales float32 ``[..., ceil(K / block)]``, or ``[..., 1]`` for block None.
    """
    wide = x.to(torch.float32)
    if block is None:
        scale = compute_scale(_amax(wide))
        return encode(wide, scale).contiguous(), scale
    split = _split(wide, block)
    scale = compute_scale(_amax(split))
    codes = encode(split, scale).flatten(-2)[..., : x.shape[-1]]
    return codes.contiguous(), scale.squeeze(-1)


def act_dequant(codes: Tensor, scale: Tensor, block: int | None, dtype: torch.dtype) -> Tensor:
    """Return ``codes * scale`` in ``dtype``; shapes as `act_quant` returns them."""
    return _dequantize(codes, scale, block).to(dtype)


def weight_quant(w: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Quantize a floating weight ``[N, K]``.

    Returns:
        Codes int8 ``[N, K]`` and scales float32 ``[ceil(N / block), ceil(K / block)]``.
    """
    n, k = w.shape
    padded = pad(w.to(torch.float32), (0, -k % block, 0, -n % block))
    tiles = padded.view(padded.shape[0] // block, block, padded.shape[1] // block, block)
    scale = compute_scale(tiles.abs().amax(dim=(1, 3)))
    codes = encode(tiles, scale[:, None, :, None]).view(padded.shape)
    return codes[:n, :k].contiguous(), scale


def weight_dequant(codes: Tensor, scale: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    """Return ``codes * scale`` in ``dtype``; shapes as `weight_quant` returns them."""
    n, k = codes.shape
    out = torch.empty((n, k), dtype=dtype, device=codes.device)
    # Some rows of blocks at a time, because their products are float32.
    height = max(1, CHUNK_ELEMENTS // max(block * k, 1))
    for first in range(0, scale.shape[0], height):
        rows = slice(first * block, (first + height) * block)
        wide = scale[first : first + height, :, None].expand(-1, -1, block).flatten(1)[:, :k]
        wide = wide[:, None].expand(-1, block, -1).flatten(0, 1)
        part = codes[rows].to(torch.float32)
        out[rows] = part.mul_(wide[: len(part)])
    return out


def int8_gelu(codes: Tensor, scale: Tensor, block: int | None, approximate: str) -> tuple[Tensor, Tensor]:
    """Apply GELU to a quantized activation and quantize the result in the same groups."""
    return act_quant(gelu(_dequantize(codes, scale, block), approximate=approximate), block)


def _dequantize(codes: Tensor, scale: Tensor, block: int | None) -> Tensor:
    wide = codes.to(torch.float32)
    if block is None:
        return wide * scale
    return wide * scale.repeat_interleave(block, -1)[..., : codes.shape[-1]]


def _split(x: Tensor, block: int) -> Tensor:
    """Split ``[..., K]`` into ``[..., groups, block]``; the last group is filled up with zeros."""
    padded = pad(x, (0, -x.shape[-1] % block))
    return padded.reshape(*x.shape[:-1], count_groups(x.shape[-1], block), block)


def _amax(x: Tensor) -> Tensor:
    """Return the absolute maximum along the last dimension, which is kept; 0 if it is empty."""
    return x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
