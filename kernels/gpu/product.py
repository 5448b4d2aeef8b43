"""Launches the kernels of `jit.product`; same functions and results as `eager.product`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.runtime import OutOfResources

from ..eager.quantize import count_groups
from ..tables import KernelConfig
from ..tiles import DeviceInfo, GemmShape, Tile
from .device import (
    OPTIONS,
    SLOW_CONVERSIONS,
    get_device_info,
    make_descriptor,
    make_rows_contiguous,
    row_stride,
    supports_descriptor,
    use_device,
)
from .jit.product import fixed, persistent


def gemm(
    config: KernelConfig,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    block: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """See `eager.product.gemm`; ``config`` from `products.choose_product`."""
    shape = GemmShape(m=a.shape[0], n=b.shape[0], k=a.shape[1], block=block)
    out = torch.empty((shape.m, shape.n), dtype=dtype, device=a.device)
    run_product(config, shape, a, a_scale, b, b_scale, bias, out, None)
    return out


def gemm_quant(
    config: KernelConfig,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    block: int,
) -> tuple[Tensor, Tensor]:
    """See `eager.product.gemm_quant`; with block scales only, because a row's scale needs the whole row."""
    shape = GemmShape(m=a.shape[0], n=b.shape[0], k=a.shape[1], block=block)
    codes = torch.empty((shape.m, shape.n), dtype=torch.int8, device=a.device)
    scale = torch.empty((shape.m, count_groups(shape.n, block)), dtype=torch.float32, device=a.device)
    run_product(config, shape, a, a_scale, b, b_scale, bias, codes, scale)
    return codes, scale


def run_product(
    config: KernelConfig,
    shape: GemmShape,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out: Tensor,
    out_scale: Tensor | None,
    device: DeviceInfo | None = None,
) -> None:
    """Compute a product in a given configuration.

    Args:
        config: Backend and tile.
        shape: Of the product.
        a: Codes int8 ``[M, K]``.
        a_scale: As `eager.product.gemm` takes it.
        b: Codes int8 ``[N, K]``.
        b_scale: As `eager.product.gemm` takes it.
        bias: ``[N]`` or None.
        out: Receives the result, ``[M, N]``, contiguous.
        out_scale: Receives the scales of a quantized result; None: the result is not quantized.
        device: Facts about the GPU; None: as `get_device_info` has them.

    Raises:
        OutOfResources: The tile does not fit into the GPU's shared memory, even with one stage.
    """
    device, tile = device or get_device_info(a.device), config.tile
    a, b = make_rows_contiguous(a), make_rows_contiguous(b)
    strides = row_stride(a), row_stride(b)
    kernel, programs, use_descriptors = fixed, tile.count(shape.m, shape.n), False
    sources: tuple[Any, Any] = (a, b)
    if config.backend == "triton_v2":
        kernel, programs = persistent, min(programs, device.processors)
        use_descriptors = device.descriptors and supports_descriptor(a) and supports_descriptor(b)
    if use_descriptors:
        width = min(tile.columns, shape.block or tile.columns)
        sources = make_descriptor(a, tile.rows, tile.depth), make_descriptor(b, width, tile.depth)
    tensors = (
        sources[0],
        a_scale.contiguous(),
        sources[1],
        b_scale.contiguous(),
        bias if bias is None else bias.contiguous(),
        out,
        out_scale,
    )
    constants = {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "ORDER": tile.order,
        "BLOCK": shape.block or 0,
        "DESCRIPTOR": use_descriptors,
        "EVEN": shape.k % tile.depth == 0,
        "SCALAR": b_scale.ndim == 0,
        "BIAS": bias is not None,
        "QUANTIZE": out_scale is not None,
        "BIASED": shape.block is not None and out_scale is None and device.arch in SLOW_CONVERSIONS,
    }
    with use_device(out):
        launch(kernel[(programs,)], (*tensors, shape.m, shape.n, shape.k, *strides), constants, tile, out.dtype)


def launch(
    kernel: Callable[..., object],
    arguments: tuple[object, ...],
    constants: dict[str, int],
    tile: Tile,
    dtype: torch.dtype,
) -> None:
    """Start a kernel with the tile's stages, or with fewer if they do not fit into the GPU's shared memory.

    What a stage takes depends on Triton's version, and what else is in shared memory on the result's ``dtype``, so the
    number that fits is found by trying, and remembered.

    Raises:
        OutOfResources: Not even one stage fits.
    """
    key = (tile, dtype, *constants.values())
    for stages in range(_FITTING.get(key, tile.stages), 0, -1):
        try:
            kernel(*arguments, **constants, num_warps=tile.warps, num_stages=stages, **OPTIONS)
            return
        except OutOfResources:
            if stages == 1:
                raise
            _FITTING[key] = stages - 1


_FITTING: dict[tuple[object, ...], int] = {}
"""Stages that fit, for tiles whose own number does not."""
