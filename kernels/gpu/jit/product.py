"""One tile of a product, from loading to storing, and the order of tiles.

A sum of K products of codes is at most K x 2^14 (both codes -128), so int32 holds it for K up to 131,071; codes of this
package reach only 127. Row offsets are 64-bit: a tensor may exceed 2^31 elements. M is not specialized, because it
changes from picture to picture.
"""

import triton
import triton.language as tl

from .scales import ROUNDER, amax, compute_scale, encode

BIAS_BITS = tl.constexpr(0x4B400000)
"""The bits of ROUNDER."""


@triton.jit
def locate_tile(position, row_tiles, column_tiles, ORDER: tl.constexpr):
    """Row and column of a tile. ``ORDER`` rows of tiles are walked together, so that operands stay in the cache."""
    band = position // (ORDER * column_tiles)
    first = band * ORDER
    height = min(row_tiles - first, ORDER)
    within = position % (ORDER * column_tiles)
    return first + within % height, within // height


@triton.jit
def load(
    x,
    row,
    column,
    rows,
    columns,
    stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Load a tile of codes. Columns past the end are zero; rows past the end may be anything: none is stored."""
    if DESCRIPTOR:
        tile = x.load([row, column])
    else:
        r = tl.minimum(row + tl.arange(0, ROWS), rows - 1).to(tl.int64)
        c = column + tl.arange(0, COLUMNS)
        at = x + r[:, None] * stride + c[None, :]
        tile = tl.load(at) if EVEN else tl.load(at, mask=(c < columns)[None, :], other=0)
    return tile


@triton.jit
def sum_rows(
    a,
    b,
    row,
    column,
    M,
    N,
    K,
    a_stride,
    b_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Sum a tile over all of K, exactly, in int32."""
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for chunk in range(tl.cdiv(K, DEPTH)):
        left = load(a, row, chunk * DEPTH, M, K, a_stride, ROWS, DEPTH, DESCRIPTOR, EVEN)
        right = load(b, column, chunk * DEPTH, N, K, b_stride, COLUMNS, DEPTH, DESCRIPTOR, EVEN)
        total = tl.dot(left, right.T, total, out_dtype=tl.int32)
    return total


@triton.jit
def add_product(total, left, right, scale, BIASED: tl.constexpr):
    """Add the product of two tiles of one scale block, times its rows' scales; fused, unlike all other sums.

    BIASED: sums start at the bits of 1.5 x 2^23 instead of 0, so that they are the low bits of a float32, and a
    subtraction converts them. That is exact below 2^22; 128 products of codes are at most 2^21. For compute capability
    8.0 it compiles to 64 additions instead of 64 conversions a chunk; for 8.6 and 8.9 to more instructions,
    and with quantized results it spills more registers.
    """
    if BIASED:
        start = tl.full(total.shape, BIAS_BITS, tl.int32)
        part = tl.dot(left, right.T, start, out_dtype=tl.int32).to(tl.float32, bitcast=True) - ROUNDER
    else:
        part = tl.dot(left, right.T, out_dtype=tl.int32).to(tl.float32)
    return tl.fma(part, tl.broadcast_to(scale[:, None], part.shape), total)


@triton.jit
def sum_blocks(
    a,
    a_scale,
    b,
    b_scale,
    row,
    column,
    M,
    N,
    K,
    a_stride,
    b_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Sum a tile in float32: exact int32 sums of one scale block each, scaled once. COLUMNS is BLOCK or divides it."""
    count = tl.cdiv(K, BLOCK)
    a_scales = a_scale + tl.minimum(row + tl.arange(0, ROWS), M - 1).to(tl.int64) * count
    b_scales = b_scale + column // BLOCK * count
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for chunk in range(count):
        # Loading the scales overlaps with the tensor cores' work.
        scale = tl.load(a_scales + chunk) * tl.load(b_scales + chunk)
        left = load(a, row, chunk * BLOCK, M, K, a_stride, ROWS, BLOCK, DESCRIPTOR, EVEN)
        right = load(b, column, chunk * BLOCK, N, K, b_stride, COLUMNS, BLOCK, DESCRIPTOR, EVEN)
        total = add_product(total, left, right, scale, BIASED)
    return total


@triton.jit
def sum_block_pairs(
    a,
    a_scale,
    b,
    b_scale,
    row,
    column,
    M,
    N,
    K,
    a_stride,
    b_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Do `sum_blocks` for a tile two blocks wide, in halves, so that only one half's int32 sums are in registers."""
    count = tl.cdiv(K, BLOCK)
    a_scales = a_scale + tl.minimum(row + tl.arange(0, ROWS), M - 1).to(tl.int64) * count
    near = b_scale + column // BLOCK * count
    # If N ends within the first half, the second half is computed from the first half's scales, and not stored.
    far = b_scale + tl.minimum(column // BLOCK + 1, tl.cdiv(N, BLOCK) - 1) * count
    first = tl.zeros((ROWS, BLOCK), tl.float32)
    second = tl.zeros((ROWS, BLOCK), tl.float32)
    for chunk in range(count):
        scale = tl.load(a_scales + chunk)
        near_scale, far_scale = scale * tl.load(near + chunk), scale * tl.load(far + chunk)
        left = load(a, row, chunk * BLOCK, M, K, a_stride, ROWS, BLOCK, DESCRIPTOR, EVEN)
        right = load(b, column, chunk * BLOCK, N, K, b_stride, BLOCK, BLOCK, DESCRIPTOR, EVEN)
        first = add_product(first, left, right, near_scale, BIASED)
        right = load(b, column + BLOCK, chunk * BLOCK, N, K, b_stride, BLOCK, BLOCK, DESCRIPTOR, EVEN)
        second = add_product(second, left, right, far_scale, BIASED)
    return first, second


@triton.jit
def scale_rows(
    total, a_scale, b_scale, row, column, M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SCALAR: tl.constexpr
):
    """Multiply int32 sums by the scales of their rows and columns; ``SCALAR``: one scale for all columns."""
    left = tl.load(a_scale + tl.minimum(row + tl.arange(0, ROWS), M - 1))
    if SCALAR:
        scale = (left * tl.load(b_scale))[:, None]
    else:
        right = tl.load(b_scale + tl.minimum(column + tl.arange(0, COLUMNS), N - 1))
        scale = left[:, None] * right[None, :]
    return total.to(tl.float32) * scale


@triton.jit
def store(
    value,
    bias,
    out,
    out_scale,
    row,
    column,
    M,
    N,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    """Add the bias to a finished tile and store it in the dtype of ``out``, or quantized in 1 x BLOCK groups."""
    r = row + tl.arange(0, ROWS)
    c = column + tl.arange(0, COLUMNS)
    if BIAS:
        value += tl.load(bias + c, mask=c < N, other=0.0).to(tl.float32)[None, :]
    inside = (r < M)[:, None] & (c < N)[None, :]
    at = r.to(tl.int64)[:, None] * N + c[None, :]
    if QUANTIZE:
        groups: tl.constexpr = COLUMNS // BLOCK
        value = tl.where(inside, value, 0.0)
        step = compute_scale(amax(tl.reshape(value, [ROWS, groups, BLOCK]), 2))
        wide = tl.reshape(tl.broadcast_to(step[:, :, None], [ROWS, groups, BLOCK]), [ROWS, COLUMNS])
        tl.store(out + at, encode(value, wide), mask=inside)
        g = column // BLOCK + tl.arange(0, groups)
        count = tl.cdiv(N, BLOCK)
        here = (r < M)[:, None] & (g < count)[None, :]
        tl.store(out_scale + r.to(tl.int64)[:, None] * count + g[None, :], step, mask=here)
    else:
        tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def compute(
    a,
    a_scale,
    b,
    b_scale,
    bias,
    out,
    out_scale,
    row,
    column,
    M,
    N,
    K,
    a_stride,
    b_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    EVEN: tl.constexpr,
    SCALAR: tl.constexpr,
    BIAS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Compute one tile; BLOCK 0 means scales per row."""
    if BLOCK == 0:
        total = sum_rows(a, b, row, column, M, N, K, a_stride, b_stride, ROWS, COLUMNS, DEPTH, DESCRIPTOR, EVEN)
        value = scale_rows(total, a_scale, b_scale, row, column, M, N, ROWS, COLUMNS, SCALAR)
        store(value, bias, out, out_scale, row, column, M, N, ROWS, COLUMNS, BLOCK, BIAS, QUANTIZE)
    elif COLUMNS == 2 * BLOCK:
        value, second = sum_block_pairs(
            a, a_scale, b, b_scale, row, column, M, N, K, a_stride, b_stride, ROWS, BLOCK, DESCRIPTOR, EVEN, BIASED
        )
        store(value, bias, out, out_scale, row, column, M, N, ROWS, BLOCK, BLOCK, BIAS, QUANTIZE)
        store(second, bias, out, out_scale, row, column + BLOCK, M, N, ROWS, BLOCK, BLOCK, BIAS, QUANTIZE)
    else:
        value = sum_blocks(
            a, a_scale, b, b_scale, row, column, M, N, K, a_stride, b_stride,
            ROWS, COLUMNS, BLOCK, DESCRIPTOR, EVEN, BIASED,
        )  # fmt: skip
        store(value, bias, out, out_scale, row, column, M, N, ROWS, COLUMNS, BLOCK, BIAS, QUANTIZE)


@triton.jit(do_not_specialize=["M"])
def fixed(
    a,
    a_scale,
    b,
    b_scale,
    bias,
    out,
    out_scale,
    M,
    N,
    K,
    a_stride,
    b_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    ORDER: tl.constexpr,
    BLOCK: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    EVEN: tl.constexpr,
    SCALAR: tl.constexpr,
    BIAS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Compute one tile per program."""
    r, c = locate_tile(tl.program_id(0), tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS), ORDER)
    compute(
        a, a_scale, b, b_scale, bias, out, out_scale, r * ROWS, c * COLUMNS, M, N, K, a_stride, b_stride,
        ROWS, COLUMNS, DEPTH, BLOCK, DESCRIPTOR, EVEN, SCALAR, BIAS, QUANTIZE, BIASED,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def persistent(
    a,
    a_scale,
    b,
    b_scale,
    bias,
    out,
    out_scale,
    M,
    N,
    K,
    a_stride,
    b_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    ORDER: tl.constexpr,
    BLOCK: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    EVEN: tl.constexpr,
    SCALAR: tl.constexpr,
    BIAS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BIASED: tl.constexpr,
):
    """Compute a share of the tiles per program, one program per processor: loads overlap with the previous store."""
    row_tiles, column_tiles = tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS)
    for position in tl.range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=True):
        r, c = locate_tile(position, row_tiles, column_tiles, ORDER)
        compute(
            a, a_scale, b, b_scale, bias, out, out_scale, r * ROWS, c * COLUMNS, M, N, K, a_stride, b_stride,
            ROWS, COLUMNS, DEPTH, BLOCK, DESCRIPTOR, EVEN, SCALAR, BIAS, QUANTIZE, BIASED,
        )  # fmt: skip
