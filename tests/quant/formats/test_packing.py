"""Codes of 4 and 6 bits in bytes, against comfy-kitchen's own."""

from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.formats.packing import E2M1_NIBBLES, NIBBLES, SIX_BITS, Packing
from hypothesis import given
from hypothesis import strategies as st

PACKINGS = pytest.mark.parametrize(
    ("packing", "bits"), [(NIBBLES, 4), (E2M1_NIBBLES, 4), (SIX_BITS, 6)], ids=["low first", "high first", "planes"]
)


def make_codes(rows: int, columns: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)


@PACKINGS
@given(rows=st.integers(1, 5), fours=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_store_load_roundtrip(packing: Packing, bits: int, rows: int, fours: int, seed: int) -> None:
    codes = make_codes(rows, 4 * fours, bits, seed)
    stored = packing.store(codes)
    assert (stored.dtype, tuple(stored.shape)) == (packing.dtype, packing.stored_shape((rows, 4 * fours)))
    assert torch.equal(packing.load(stored), codes)


@pytest.mark.parametrize(("packing", "bits"), [(NIBBLES, 4), (SIX_BITS, 6)])
def test_integer_codes_lie_as_in_comfy_kitchen(packing: Packing, bits: int) -> None:
    host = pytest.importorskip("comfy_kitchen.tensor.w4a8_packed", reason="comfy-kitchen before 0.2.36")
    codes = make_codes(3, 64, bits, seed=1)
    assert torch.equal(packing.store(codes), host._pack_codes(codes.int(), bits))
    assert torch.equal(packing.load(packing.store(codes)).int(), host._unpack_codes(packing.store(codes), 64, bits))


def test_float_codes_lie_as_in_comfy_kitchen() -> None:
    host = pytest.importorskip("comfy_kitchen.float_utils")
    codes = make_codes(3, 64, 4, seed=2)
    assert torch.equal(E2M1_NIBBLES.store(codes), host.pack_uint4(codes))


def test_first_columns_lie_in_the_lowest_bits() -> None:
    assert NIBBLES.store(torch.tensor([[1, 2]], dtype=torch.uint8)).tolist() == [[0x21]]
    assert E2M1_NIBBLES.store(torch.tensor([[1, 2]], dtype=torch.uint8)).tolist() == [[0x12]]
    planes = SIX_BITS.store(torch.tensor([[0x11, 0x22, 0x33, 0x04]], dtype=torch.uint8))
    assert planes.tolist() == [[0x21, 0x43, 0b00111001]]
