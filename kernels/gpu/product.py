"""Launches the kernels of `jit.product`; the functions and results of `eager.product`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from triton.runtime import OutOfResources

from ..eager.quantize import groups
from ..tables import Choice, choose
from ..tiles import Problem, Tile
from .device import describable, describe, device_of, guard, row_stride, with_contiguous_rows
from .jit.product import fixed, persistent
from .quantize import act_quant


def gemm(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    block: int | None,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """`eager.gemm` by ``backend``: "triton", "triton_v2", or "auto" for what the tables say."""
    problem = Problem(a.shape[0], b.shape[0], a.shape[1], block)
    out = torch.empty((problem.m, problem.n), dtype=dtype, device=a.device)
    run(choose(backend, problem, device_of(a.device)), problem, a, a_scale, b, b_scale, bias, out, None)
    return out


def gemm_quant(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, block: int | None, backend: str
) -> tuple[Tensor, Tensor]:
    """`eager.gemm_quant`: with blocks in one pass; a row's scale needs the whole row, so rows take a second pass."""
    if block is None:
        return act_quant(gemm(a, a_scale, b, b_scale, bias, None, torch.float32, backend), None)
    problem = Problem(a.shape[0], b.shape[0], a.shape[1], block)
    codes = torch.empty((problem.m, problem.n), dtype=torch.int8, device=a.device)
    scale = torch.empty((problem.m, groups(problem.n, block)), dtype=torch.float32, device=a.device)
    choice = choose(backend, problem, device_of(a.device))
    if choice.tile.columns < block:
        choice = replace(choice, tile=replace(choice.tile, columns=block))
    run(choice, problem, a, a_scale, b, b_scale, bias, codes, scale)
    return codes, scale


def run(
    choice: Choice,
    problem: Problem,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out: Tensor,
    out_scale: Tensor | None,
) -> None:
    """Compute into ``out [M, N]``, contiguous; with ``out_scale``, quantized."""
    device, tile = device_of(a.device), choice.tile
    a, b = with_contiguous_rows(a), with_contiguous_rows(b)
    steps = row_stride(a), row_stride(b)
    kernel, programs, described = fixed, tile.count(problem.m, problem.n), False
    sources: tuple[Any, Any] = (a, b)
    if choice.backend == "triton_v2":
        kernel, programs = persistent, min(programs, device.processors)
        described = device.descriptors and describable(a) and describable(b)
    if described:
        width = min(tile.columns, problem.block or tile.columns)
        sources = describe(a, tile.rows, tile.depth), describe(b, width, tile.depth)
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
        "BLOCK": problem.block or 0,
        "DESCRIPTOR": described,
        "EVEN": problem.k % tile.depth == 0,
        "SCALAR": b_scale.ndim == 0,
        "BIAS": bias is not None,
        "QUANTIZE": out_scale is not None,
    }
    with guard(out):
        launch(kernel[(programs,)], (*tensors, problem.m, problem.n, problem.k, *steps), constants, tile)


def launch(kernel: Callable[..., object], arguments: tuple[object, ...], constants: dict[str, int], tile: Tile) -> None:
    """Start a kernel with the tile's stages, or with fewer where they do not fit into the GPU's shared memory.

    How much a stage takes depends on Triton's version; what fits is remembered. Raises OutOfResources if one does not.
    """
    key = (tile, *constants.values())
    for stages in range(_FITTING.get(key, tile.stages), 0, -1):
        try:
            kernel(*arguments, **constants, num_warps=tile.warps, num_stages=stages)
            return
        except OutOfResources:
            if stages == 1:
                raise
            _FITTING[key] = stages - 1


_FITTING: dict[tuple[object, ...], int] = {}
"""Stages that fit, of the tiles whose own did not."""
