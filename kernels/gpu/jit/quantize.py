"""Quantization and its inverse. A program takes some scale groups of one row, or one tile of a weight."""

import triton
import triton.language as tl

from .scales import amax, compute_scale, encode, gelu


@triton.jit
def quantize(
    x,
    x_scale,
    codes,
    scale,
    columns,
    count,
    row_stride,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    GELU: tl.constexpr,
    TANH: tl.constexpr,
):
    """Quantize ``GROUPS`` of the ``count`` groups of a row; GELU: of codes with scales ``x_scale``, through GELU."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    column = group[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = column < columns
    value = tl.load(x + row * row_stride + column, mask=inside, other=0).to(tl.float32)
    if GELU:
        step = tl.load(x_scale + row * count + group, mask=group < count, other=0.0)
        value = gelu(value * step[:, None], TANH)
    step = compute_scale(amax(value, 1))
    tl.store(codes + row * columns + column, encode(value, tl.broadcast_to(step[:, None], value.shape)), mask=inside)
    tl.store(scale + row * count + group, step, mask=group < count)


@triton.jit
def dequantize(
    codes,
    scale,
    out,
    columns,
    count,
    row_stride,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Multiply codes by scales; ``ROWS`` rows of codes share a row of scales."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    column = group[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = column < columns
    value = tl.load(codes + row * row_stride + column, mask=inside, other=0).to(tl.float32)
    step = tl.load(scale + row // ROWS * count + group, mask=group < count, other=0.0)
    tl.store(out + row * columns + column, (value * step[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def quantize_weight(w, codes, scale, rows, columns, row_stride, BLOCK: tl.constexpr):
    """Quantize one block x block tile."""
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (row < rows) & (column < columns)
    row = row.to(tl.int64)
    value = tl.load(w + row * row_stride + column, mask=inside, other=0).to(tl.float32)
    step = compute_scale(amax(amax(value, 1), 0)[None, None])
    tl.store(codes + row * columns + column, encode(value, tl.broadcast_to(step, value.shape)), mask=inside)
    tl.store(scale + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.max(step))
