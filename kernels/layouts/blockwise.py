"""INT8 weights with a scale for each square block, as a layout of comfy-kitchen's QuantizedTensor.

Blocks are square, so transposing codes and scales together gives the transposed weight: no flag says which way it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout, QuantizedTensor
from torch import Tensor

from .. import ops

NAME = "BlockWiseINT8Layout"
PACK = "calibrated-rounding"
BLOCK_SIZE = 128
MAXIMUM = 127


class BlockWiseINT8Layout(QuantizedLayout):  # type: ignore[misc]  # comfy-kitchen is untyped
    """Codes int8 ``[N, K]``; a scale for each ``block_size x block_size`` block, float32 ``[ceil(N/b), ceil(K/b)]``."""

    PACK = PACK
    """Whose class this is: a second import of the pack finds the first one's by it."""

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):  # type: ignore[misc]
        block_size: int = BLOCK_SIZE

    @classmethod
    def quantize(
        cls,
        tensor: Tensor,
        scale: Tensor | str | None = None,
        stochastic_rounding: int | None = 0,
        inplace_ops: bool = False,
        block_size: int = BLOCK_SIZE,
        **_: Any,
    ) -> tuple[Tensor, Params]:
        """Codes and Params of a floating weight ``[N, K]``.

        scale: the blocks' scales, or None or "recalculate" for absmax / 127. stochastic_rounding: a seed above 0 rounds
        up as often as the remainder says, so that the mean is kept; else to nearest. The tensor is never changed,
        ``inplace_ops`` or not. Raises ValueError where the tensor is not a matrix.
        """
        if tensor.ndim != 2:
            raise ValueError(f"Block-wise INT8 stores matrices, not a tensor of shape {list(tensor.shape)}.")
        codes, found = ops.weight_quant(tensor, block_size)
        if isinstance(scale, Tensor):
            found = scale.to(tensor.device, torch.float32)
        if isinstance(scale, Tensor) or stochastic_rounding:
            codes = _encode(tensor, found, block_size, stochastic_rounding or 0)
        return codes, cls.Params(found, tensor.dtype, tuple(tensor.shape), block_size)

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        """The weight in ``params.orig_dtype``; leading dimensions of a view stay."""
        codes, scale = qdata.flatten(0, -2), params.scale.flatten(0, -2)
        return ops.weight_dequant(codes, scale, params.block_size, params.orig_dtype).view(qdata.shape)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        """What a checkpoint holds, by the suffix to the weight's key; a transposed view is laid out first."""
        return {"": qdata.contiguous(), "_scale": params.scale.contiguous()}

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        return {"block_size": qtensor._params.block_size}


def _encode(tensor: Tensor, scale: Tensor, block_size: int, seed: int) -> Tensor:
    rows = scale.repeat_interleave(block_size, 0)[: tensor.shape[0]]
    units = tensor.to(torch.float32) / rows.repeat_interleave(block_size, 1)[:, : tensor.shape[1]]
    if seed:
        generator = torch.Generator(tensor.device).manual_seed(seed)
        units = units.add_(torch.rand(units.shape, generator=generator, device=units.device)).floor_()
    return units.round_().clamp_(-MAXIMUM, MAXIMUM).to(torch.int8)
