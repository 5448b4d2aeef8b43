"""MXFP8 scales: powers of two (OCP Microscaling Formats 1.0, E8M0), stored in the tiled order that cuBLAS reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE = (128, 4)
LANES = 32
"""Rows of scales in a tile that lie next to each other: the tile is stored as 32 x 16."""

BIAS = 127


def swizzled_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which scales ``[N, K / 32]`` are stored: padded to whole tiles of 128 x 4."""
    return tuple(-(-size // tile) * tile for size, tile in zip(shape, TILE, strict=True))


def pack_scale(scale: Tensor) -> Tensor:
    """Encode and swizzle scales.

    Args:
        scale: Powers of two, float32 ``[N, K / 32]``.

    Returns:
        Biased exponents, uint8 in `swizzled_shape`. Not ``float8_e8m0fnu``, which older safetensors readers do not
        know; ComfyUI views the bytes as either.
    """
    return swizzle((torch.frexp(scale).exponent - 1 + BIAS).to(torch.uint8))


def unpack_scale(stored: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unswizzle and decode scales: the inverse of `pack_scale`.

    Args:
        stored: Biased exponents, any 8-bit dtype, in `swizzled_shape`.
        shape: ``(N, K / 32)``.

    Returns:
        Float32 ``[N, K / 32]``.
    """
    exponent = unswizzle(stored.view(torch.uint8), shape)
    return torch.ldexp(torch.ones(shape, device=stored.device), exponent.to(torch.int32) - BIAS)


def swizzle(scale: Tensor) -> Tensor:
    """Pad a matrix of bytes, uint8 ``[rows, columns]``, with zeros to `swizzled_shape` and store it tile by tile."""
    rows, columns = swizzled_shape(tuple(scale.shape))
    padded = pad(scale, (0, columns - scale.shape[1], 0, rows - scale.shape[0]))
    tiles = padded.view(rows // TILE[0], TILE[0] // LANES, LANES, columns // TILE[1], TILE[1])
    return _swap_tile_order(tiles).reshape(rows, columns)


def unswizzle(stored: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `swizzle`, for a matrix of this shape."""
    rows, columns = swizzled_shape(shape)
    tiles = stored.reshape(rows // TILE[0], columns // TILE[1], LANES, TILE[0] // LANES, TILE[1])
    return _swap_tile_order(tiles).reshape(rows, columns)[: shape[0], : shape[1]]


def _swap_tile_order(x: Tensor) -> Tensor:
    """Permute between the order of a matrix and the order of storage; its own inverse.

    Scale ``(r, c)`` of a tile is stored at ``(r % 32) * 16 + (r // 32) * 4 + c``, and tiles follow row by row (cuBLAS,
    "1D block scaling factors layout"): ``[tile row, r // 32, r % 32, tile column, c]`` is stored as ``[tile row, tile
    column, r % 32, r // 32, c]``.
    """
    return x.permute(0, 3, 2, 1, 4)
