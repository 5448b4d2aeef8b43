"""One layer: rotate, scale, round, and measure what it cost."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import scales
from .errors import LayerError
from .formats import Format
from .granularity import PerTensor
from .recipe import Recipe
from .rotation import rotate
from .rounding import SvdResult, round_nearest, round_svd

BLOCK_ELEMENTS = 1 << 20
"""Weights are taken to float32 in blocks of rows of about this many elements, so a layer costs little beside itself."""

Tick = Callable[[], None]


@dataclass(frozen=True)
class QuantizedLayer:
    """codes (padded shape) and float32 scale as `Format` shapes them; error: ||W_q - W|| / ||W||, both 0 for a zero
    weight.

    projected and projected_nearest: the error on the leading singular directions, relative, where `svd` rounded.
    given_back: `svd` was not better than nearest, so nearest it is.
    """

    codes: Tensor
    scale: Tensor
    error: float
    projected: float | None = None
    projected_nearest: float | None = None
    given_back: bool = False


def quantize_layer(
    name: str,
    weight: Tensor,
    fmt: Format,
    group: int | None,
    recipe: Recipe,
    device: torch.device | str = "cpu",
    tick: Tick = lambda: None,
) -> QuantizedLayer:
    """Quantize a weight ``[N, K]`` of any floating dtype; the result lies on ``device``.

    ``tick`` is called often and may raise to stop. Raises LayerError naming the layer for NaN or infinite weights, and
    where the device's memory does not suffice.
    """
    try:
        if recipe.rounding == "svd":
            return _svd(name, weight.to(device), fmt, group, recipe, tick)
        return _nearest(name, weight.to(device), fmt, group, recipe, tick)
    except torch.cuda.OutOfMemoryError:
        raise LayerError(
            f"Layer '{name}' ({weight.shape[0]} x {weight.shape[1]}) does not fit in the memory of {device}; "
            "quantize on the CPU, or with rounding 'nearest'."
        ) from None


def dequantize_layer(codes: Tensor, scale: Tensor, fmt: Format, group: int | None, shape: tuple[int, int]) -> Tensor:
    """float32 ``[N, K]`` in the basis of the inputs, padding removed."""
    weight = fmt.dequantize(codes, scale)
    return (rotate(weight, group) if group else weight)[: shape[0], : shape[1]]


def _nearest(name: str, weight: Tensor, fmt: Format, group: int | None, recipe: Recipe, tick: Tick) -> QuantizedLayer:
    shared = _tensor_scale(name, weight, fmt, recipe) if isinstance(fmt.granularity, PerTensor) else None
    codes, found, square_error, square = [], [], 0.0, 0.0
    for block in _float_blocks(name, weight, fmt, group):
        tick()
        scale = scales.METHODS[recipe.scale](block, fmt) if shared is None else shared
        code = round_nearest(block, scale, fmt)
        square += float(block.square().sum(dtype=torch.float64))
        square_error += float(fmt.dequantize(code, scale).sub_(block).square_().sum(dtype=torch.float64))
        codes.append(code)
        found.append(scale)
    return QuantizedLayer(
        torch.cat(codes), found[0] if shared is not None else torch.cat(found), _ratio(square_error, square)
    )


def _svd(name: str, weight: Tensor, fmt: Format, group: int | None, recipe: Recipe, tick: Tick) -> QuantizedLayer:
    full = torch.cat(list(_float_blocks(name, weight, fmt, group)))
    scale = scales.METHODS[recipe.scale](full, fmt)
    devices = [full.device] if full.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(layer_seed(name, recipe.seed))
        result: SvdResult = round_svd(full, scale, fmt, recipe.svd, tick)
    square_error = float(fmt.dequantize(result.codes, scale).sub_(full).square_().sum(dtype=torch.float64))
    error = _ratio(square_error, float(full.square().sum(dtype=torch.float64)))
    return QuantizedLayer(result.codes, scale, error, result.error, result.nearest_error, result.given_back)


def layer_seed(name: str, seed: int) -> int:
    """A seed of its own for each layer, whatever the order in which they are done."""
    return zlib.crc32(name.encode()) ^ seed


def _float_blocks(name: str, weight: Tensor, fmt: Format, group: int | None) -> Iterator[Tensor]:
    """Rows of the weight as float32, padded and rotated as the format stores them, and checked to be finite."""
    rows, columns = fmt.padded_shape((weight.shape[0], weight.shape[1]))
    unit = math.lcm(fmt.granularity.rows, fmt.padded[0])
    height = max(unit, BLOCK_ELEMENTS // columns // unit * unit)
    for start in range(0, rows, height):
        block = weight[start : start + height].to(torch.float32)
        if not torch.isfinite(block.abs().amax() if block.numel() else torch.zeros(())):
            raise LayerError(
                f"Layer '{name}' holds NaN or infinite weights; the source file is damaged or not a weight."
            )
        missing = (0, columns - block.shape[1], 0, min(height, rows - start) - block.shape[0])
        block = torch.nn.functional.pad(block, missing) if any(missing) else block
        yield rotate(block, group) if group else block


def _tensor_scale(name: str, weight: Tensor, fmt: Format, recipe: Recipe) -> Tensor:
    if recipe.scale == "absmax":
        amax = torch.stack([block.abs().amax() for block in _float_blocks(name, weight, fmt, None)]).amax()
        return scales.from_amax(amax, fmt)
    return scales.METHODS[recipe.scale](torch.cat(list(_float_blocks(name, weight, fmt, None))), fmt)


def _ratio(square_error: float, square: float) -> float:
    return math.sqrt(square_error / square) if square > 0 else 0.0
