"""Scales and codes of float32 values, bit for bit as the eager reference computes them."""

import triton
import triton.language as tl

MAXIMUM = tl.constexpr(127.0)
SMALLEST = tl.constexpr(2.0**-126)
ROUNDER = tl.constexpr(12582912.0)
"""1.5 x 2^23: added to a float32 of magnitude below 2^22, it leaves the value rounded half to even in the low bits."""


@triton.jit
def amax(x, axis: tl.constexpr):
    """Absolute maximum along an axis; NaN if there is one: as integers, floats are in order and NaN is last."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis).to(tl.float32, bitcast=True)


@triton.jit
def compute_scale(maximum):
    """Scale of an absolute maximum, in the same shape."""
    scale = tl.div_rn(maximum, tl.full(maximum.shape, MAXIMUM, tl.float32))
    scale = tl.where(scale < SMALLEST, SMALLEST, scale)
    return tl.where(maximum == 0.0, 1.0, scale)


@triton.jit
def encode(x, scale):
    """Int8 codes; ``scale`` has the shape of ``x``."""
    value = tl.minimum(tl.maximum(tl.div_rn(x, scale), -MAXIMUM), MAXIMUM)
    return (value + ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def gelu(x, TANH: tl.constexpr):
    """GELU of float32 ``x``, exact or approximated with tanh."""
    if TANH:
        # x * (1 + tanh(z)) / 2 = x * sigmoid(2 z)
        share = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    return x * share
