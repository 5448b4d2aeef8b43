"""INT8 weights with one scale per square block, as a layout of comfy-kitchen's QuantizedTensor.

Blocks are square, so transposing codes and scales together transposes the weight, and no flag is needed.
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
    """Codes int8 ``[N, K]`` and one scale per ``block_size x block_size`` block, float32 ``[ceil(N/b), ceil(K/b)]``."""

    PACK = PACK
    """Owner of the class, by which a second import of the pack recognises the layout of the first."""

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
        """Quantize a floating weight.

        Args:
            tensor: Weight ``[N, K]``.
            scale: Scales of the blocks; None or "recalculate": absmax / 127.
            stochastic_rounding: A seed above 0 rounds stochastically, which preserves the mean; else to nearest.
            inplace_ops: Ignored: the tensor is never changed.
            block_size: Side of a block.

        Returns:
            Codes and Params.

        Raises:
            ValueError: The tensor is not a matrix.
        """
        if tensor.ndim != 2:
            raise ValueError(f"Block-wise INT8 stores matrices, not a tensor of shape {list(tensor.shape)}.")
        codes, block_scale = ops.weight_quant(tensor, block_size)
        if isinstance(scale, Tensor):
            block_scale = scale.to(tensor.device, torch.float32)
        if isinstance(scale, Tensor) or stochastic_rounding:
            codes = _encode(tensor, block_scale, block_size, stochastic_rounding or 0)
        return codes, cls.Params(block_scale, tensor.dtype, tuple(tensor.shape), block_size)

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        """Return the weight in ``params.orig_dtype``; leading dimensions of a view are kept."""
        codes, scale = qdata.flatten(0, -2), params.scale.flatten(0, -2)
        return ops.weight_dequant(codes, scale, params.block_size, params.orig_dtype).view(qdata.shape)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, Tensor]:
        """Return codes and scales."""
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by suffix to the weight's key, contiguous also for a transposed view."""
        return {"": qdata.contiguous(), "_scale": params.scale.contiguous()}

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """Return the arguments of `quantize` that requantizing keeps."""
        return {"block_size": qtensor._params.block_size}


def _encode(tensor: Tensor, scale: Tensor, block_size: int, seed: int) -> Tensor:
    rows = scale.repeat_interleave(block_size, 0)[: tensor.shape[0]]
    units = tensor.to(torch.float32) / rows.repeat_interleave(block_size, 1)[:, : tensor.shape[1]]
    if seed:
        generator = torch.Generator(tensor.device).manual_seed(seed)
        units = units.add_(torch.rand(units.shape, generator=generator, device=units.device)).floor_()
    return units.round_().clamp_(-MAXIMUM, MAXIMUM).to(torch.int8)
