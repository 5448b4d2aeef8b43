"""Error feedback within a block of inputs. A program has some outputs, which depend on no others, and walks inputs."""

import triton
import triton.language as tl


@triton.jit
def round_to_grid(x, MAXIMUM: tl.constexpr, MANTISSA_BITS: tl.constexpr, SMALLEST_EXPONENT: tl.constexpr):
    """The nearest values of the grid, halves to even, saturating."""
    x = tl.minimum(tl.maximum(x, -MAXIMUM), MAXIMUM)
    exponent = ((x.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
    exponent = tl.maximum(exponent, SMALLEST_EXPONENT)
    # 1.5 x 2^23 times the distance between grid points: in a sum with it, nothing smaller than that distance is left.
    anchor = ((exponent - MANTISSA_BITS + (23 + 127)) << 23) | 0x400000
    anchor = anchor.to(tl.float32, bitcast=True)
    return (x + anchor) - anchor


@triton.jit
def walk(
    start,
    weight,
    scale,
    low,
    high,
    within,
    errors,
    count,
    N,
    start_stride,
    weight_stride,
    scale_stride,
    scale_step,
    low_stride,
    high_stride,
    within_stride,
    within_step,
    errors_stride,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    DESCEND: tl.constexpr,
    LIMITED: tl.constexpr,
    MAXIMUM: tl.constexpr,
    MANTISSA_BITS: tl.constexpr,
    SMALLEST_EXPONENT: tl.constexpr,
):
    """`eager.feed_back` from targets, or `eager.descend` from a gradient; ``start`` is either.

    ``moved`` holds the errors made, or changed, of the inputs walked, and zeros for those to come.
    """
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = n < N
    rows = tl.arange(0, BLOCK)
    moved = tl.zeros((BLOCK, TILE), tl.float32)
    for step in range(count):
        i = step if DESCEND else count - 1 - step
        row = tl.load(within + i * within_stride + rows * within_step, mask=rows < count, other=0.0)
        value = tl.load(start + i * start_stride + n, mask=inside, other=0.0)
        w = tl.load(weight + i * weight_stride + n, mask=inside, other=0.0)
        s = tl.load(scale + i * scale_stride + n * scale_step, mask=inside, other=1.0)
        passed_on = tl.sum(row[:, None] * moved, 0)
        if DESCEND:
            error = tl.load(errors + i * errors_stride + n, mask=inside, other=0.0)
            curvature = tl.load(within + i * (within_stride + within_step))
            gradient = value + passed_on
            target = w + error - tl.div_rn(gradient, tl.broadcast_to(curvature, gradient.shape))
        else:
            target = value - passed_on
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
        moved = tl.where((rows == i)[:, None], change[None, :], moved)
