"""MXFP8 scales in storage order, against comfy-kitchen's own."""

from __future__ import annotations

import torch
from calibrated_rounding.quant.formats.mxfp8 import pack_scale, swizzled_shape, unpack_scale
from comfy_kitchen.float_utils import from_blocked, to_blocked
from hypothesis import given
from hypothesis import strategies as st

SHAPES = {"rows": st.integers(1, 300), "columns": st.integers(1, 20), "seed": st.integers(0, 2**32)}


def make_exponents(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Biased exponents of normal float32 numbers, uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 255, (rows, columns), generator=generator, dtype=torch.uint8)


def decode(exponents: torch.Tensor) -> torch.Tensor:
    return torch.exp2(exponents.double() - 127).float()


@given(**SHAPES)
def test_scales_are_stored_as_comfy_kitchen_does(rows: int, columns: int, seed: int) -> None:
    exponents = make_exponents(rows, columns, seed)
    stored = pack_scale(decode(exponents))
    assert stored.is_contiguous() and stored.dtype == torch.uint8
    assert tuple(stored.shape) == swizzled_shape((rows, columns))
    assert torch.equal(stored.flatten(), to_blocked(exponents, flatten=False).flatten())
    assert torch.equal(from_blocked(stored, num_rows=rows, num_cols=columns), exponents)


@given(**SHAPES)
def test_pack_unpack_roundtrip(rows: int, columns: int, seed: int) -> None:
    scale = decode(make_exponents(rows, columns, seed))
    assert torch.equal(unpack_scale(pack_scale(scale), (rows, columns)), scale)
    assert torch.equal(unpack_scale(pack_scale(scale).view(torch.float8_e8m0fnu), (rows, columns)), scale)


def test_scale_offsets_within_a_tile() -> None:
    """The layout as cuBLAS documents it: offset (r % 32) * 16 + (r // 32) * 4 + c, tiles row by row."""
    stored = pack_scale(decode(torch.arange(1, 129, dtype=torch.uint8)[:, None].expand(128, 8))).flatten()
    for row, column in ((0, 0), (1, 3), (32, 0), (127, 3), (33, 6)):
        offset = column // 4 * 512 + row % 32 * 16 + row // 32 * 4 + column % 4
        assert stored[offset] == row + 1
