"""LDLQ and coordinate descent within a block of columns.

A program rounds some rows of the weight, which do not depend on other rows, column by column.
"""

import triton
import triton.language as tl


@triton.jit
def round_to_grid(x, MAXIMUM: tl.constexpr, MANTISSA_BITS: tl.constexpr, SMALLEST_EXPONENT: tl.constexpr):
    """Round to the nearest grid point: halves to even, saturating."""
    x = tl.minimum(tl.maximum(x, -MAXIMUM), MAXIMUM)
    exponent = ((x.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
    exponent = tl.maximum(exponent, SMALLEST_EXPONENT)
    # 1.5 x 2^23 times the distance between grid points: adding it rounds away everything below that distance.
    anchor = ((exponent - MANTISSA_BITS + (23 + 127)) << 23) | 0x400000
    anchor = anchor.to(tl.float32, bitcast=True)
    return (x + anchor) - anchor


@triton.jit
def round_columns(
    start,
    weight,
    scale,
    low,
    high,
    matrix,
    errors,
    count,
    N,
    start_stride,
    weight_stride,
    scale_stride,
    scale_step,
    low_stride,
    high_stride,
    matrix_stride,
    matrix_step,
    errors_stride,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    DESCEND: tl.constexpr,
    LIMITED: tl.constexpr,
    MAXIMUM: tl.constexpr,
    MANTISSA_BITS: tl.constexpr,
    SMALLEST_EXPONENT: tl.constexpr,
):
    """`eager.ldlq.ldlq_block`, or `eager.ldlq.descend_block` if DESCEND.

    ``start`` holds targets and ``matrix`` the factor, or ``start`` the gradient and ``matrix`` the Hessian. ``changes``
    holds the errors (DESCEND: their changes) of the columns done so far, and zeros for the others.
    """
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = n < N
    columns = tl.arange(0, BLOCK)
    changes = tl.zeros((BLOCK, TILE), tl.float32)
    for step in range(count):
        i = step if DESCEND else count - 1 - step
        row = tl.load(matrix + i * matrix_stride + columns * matrix_step, mask=columns < count, other=0.0)
        value = tl.load(start + i * start_stride + n, mask=inside, other=0.0)
        w = tl.load(weight + i * weight_stride + n, mask=inside, other=0.0)
        s = tl.load(scale + i * scale_stride + n * scale_step, mask=inside, other=1.0)
        feedback = tl.sum(row[:, None] * changes, 0)
        if DESCEND:
            error = tl.load(errors + i * errors_stride + n, mask=inside, other=0.0)
            curvature = tl.load(matrix + i * (matrix_stride + matrix_step))
            gradient = value + feedback
            target = w + error - tl.div_rn(gradient, tl.broadcast_to(curvature, gradient.shape))
        else:
            target = value - feedback
        scaled = tl.div_rn(target, s)
        if LIMITED:
            scaled = tl.maximum(scaled, tl.load(low + i * low_stride + n, mask=inside, other=0.0))
            scaled = tl.minimum(scaled, tl.load(high + i * high_stride + n, mask=inside, other=0.0))
        change = round_to_grid(scaled, MAXIMUM, MANTISSA_BITS, SMALLEST_EXPONENT) * s - w
        if DESCEND:
            change -= error
            # Several warps load the same errors: none may overwrite them before all others have them.
            tl.debug_barrier()
            tl.store(errors + i * errors_stride + n, error + change, mask=inside)
        else:
            tl.store(errors + i * errors_stride + n, change, mask=inside)
        changes = tl.where((columns == i)[:, None], change[None, :], changes)
