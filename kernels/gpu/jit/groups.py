"""LDLQ within a group of columns that share a scale, for every candidate of the scale.

A program rounds some rows of the weight, which do not depend on other rows: candidate by candidate, column by column.
"""

import triton
import triton.language as tl


@triton.jit
def decode(levels, place, scale, INTEGER: tl.constexpr):
    """Return the grid points of levels, by their places."""
    point = tl.load(levels + place) * scale
    if INTEGER:
        point = tl.minimum(tl.maximum(point, -127.0), 127.0)
        # Adding 1.5 x 2^23 rounds to whole numbers, halves to even.
        point = (point + 12582912.0) - 12582912.0
    return point


@triton.jit
def round_group(
    weight,
    targets,
    factor,
    pivots,
    scales,
    levels,
    places,
    errors,
    chosen_scale,
    chosen_cost,
    count,
    candidates,
    N,
    bins,
    density,
    offset,
    weight_stride,
    targets_stride,
    factor_stride,
    factor_step,
    pivots_stride,
    scales_stride,
    errors_stride,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    INTEGER: tl.constexpr,
):
    """`eager.groups.round_group`. ``changes`` holds the errors of the columns done so far, and zeros for the others."""
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = n < N
    columns = tl.arange(0, COLUMNS)
    best = tl.zeros((COLUMNS, TILE), tl.float32)
    best_scale = tl.zeros((TILE,), tl.float32)
    best_cost = tl.full((TILE,), float("inf"), tl.float32)
    for candidate in range(candidates):
        scale = tl.load(scales + candidate * scales_stride + n, mask=inside, other=1.0)
        inverse = tl.div_rn(tl.full((TILE,), 1.0, tl.float32), scale)
        changes = tl.zeros((COLUMNS, TILE), tl.float32)
        cost = tl.zeros((TILE,), tl.float32)
        for step in range(count):
            i = count - 1 - step
            row = tl.load(factor + i * factor_stride + columns * factor_step, mask=columns < count, other=0.0)
            w = tl.load(weight + i * weight_stride + n, mask=inside, other=0.0)
            target = tl.load(targets + i * targets_stride + n, mask=inside, other=0.0)
            target -= tl.sum(row[:, None] * changes, 0)
            place = target * inverse * density + offset
            place = tl.maximum(tl.minimum(place, bins - 1.0).to(tl.int32), 0)
            place = tl.load(places + place)
            nearest = decode(levels, place, scale, INTEGER)
            other = decode(levels, tl.where(target > nearest, place + 1, place - 1), scale, INTEGER)
            rounded = tl.where(tl.abs(other - target) < tl.abs(nearest - target), other, nearest)
            distance = rounded - target
            cost += tl.load(pivots + i * pivots_stride) * (distance * distance)
            changes = tl.where((columns == i)[:, None], (rounded - w)[None, :], changes)
        better = (cost < best_cost) | (candidate == 0)
        best = tl.where(better[None, :], changes, best)
        best_scale = tl.where(better, scale, best_scale)
        best_cost = tl.where(better, cost, best_cost)
    tl.store(errors + columns[:, None] * errors_stride + n[None, :], best, mask=(columns < count)[:, None] & inside)
    tl.store(chosen_scale + n, best_scale, mask=inside)
    tl.store(chosen_cost + n, best_cost, mask=inside)
