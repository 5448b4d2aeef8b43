"""Hadamard rotation of a row in groups, and its quantization, in one pass over memory. A program takes one row."""

import triton
import triton.language as tl

from .scales import amax, compute_scale, encode


@triton.jit
def rotate(x, GROUPS: tl.constexpr, GROUP: tl.constexpr, STEPS: tl.constexpr):
    """Multiply ``x [GROUPS, GROUP]``, each group in reverse order, by the Hadamard matrix of size GROUP = 4^STEPS.

    The matrix is the Kronecker power of (J - 2 P) / 2, J all ones and P the reversal of four. Because J = J P it is the
    power of (J - 2 I) / 2 after reversing the whole group, and a step is half the sum of four, less each of them.
    """
    for step in tl.static_range(STEPS):
        fours = tl.reshape(x, [GROUPS * 4**step, 4, GROUP // 4 ** (step + 1)])
        fours = tl.sum(fours, 1, keep_dims=True) * 0.5 - fours
        x = tl.reshape(fours, [GROUPS, GROUP])
    return x


@triton.jit
def rotate_quantize(
    x, codes, scale, columns, row_stride, GROUPS: tl.constexpr, GROUP: tl.constexpr, STEPS: tl.constexpr
):
    """Rotate a row and quantize it with one scale."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.arange(0, GROUPS)[:, None] * GROUP
    within = tl.arange(0, GROUP)[None, :]
    backwards = start + (GROUP - 1 - within)
    value = tl.load(x + row * row_stride + backwards, mask=backwards < columns, other=0).to(tl.float32)
    value = rotate(value, GROUPS, GROUP, STEPS)
    step = compute_scale(amax(amax(value, 1), 0)[None, None])
    column = start + within
    inside = column < columns
    tl.store(codes + row * columns + column, encode(value, tl.broadcast_to(step, value.shape)), mask=inside)
    tl.store(scale + row, tl.max(step))
