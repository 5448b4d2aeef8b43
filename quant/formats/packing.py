"""How codes of less than a byte lie in bytes: pure functions from codes ``[N, K]`` to bytes and back.

Unpacked codes are unsigned, uint8. `Packing` pairs the two directions with the bytes that a code takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Packing:
    """One way to store codes in bytes."""

    width: Fraction
    """Stored columns for each input."""
    dtype: torch.dtype
    """Of the stored bytes."""
    pack: Callable[[Tensor], Tensor]
    """Codes uint8 ``[N, K]`` to bytes uint8 ``[N, width K]``."""
    unpack: Callable[[Tensor], Tensor]
    """The inverse."""

    def stored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the bytes of codes ``[N, K]``."""
        return shape[0], int(shape[1] * self.width)

    def store(self, codes: Tensor) -> Tensor:
        """Pack codes uint8 ``[N, K]`` into a tensor of `dtype`."""
        return self.pack(codes).contiguous().view(self.dtype)

    def load(self, stored: Tensor) -> Tensor:
        """Unpack a stored tensor into codes uint8 ``[N, K]``."""
        return self.unpack(stored.contiguous().view(torch.uint8))


def pack_low_first(codes: Tensor) -> Tensor:
    """Pack two 4-bit codes a byte, the even column in the low nibble."""
    return codes[:, 0::2] | codes[:, 1::2] << 4


def unpack_low_first(stored: Tensor) -> Tensor:
    """Inverse of `pack_low_first`."""
    return torch.stack((stored & 15, stored >> 4), dim=-1).flatten(1)


def pack_high_first(codes: Tensor) -> Tensor:
    """Pack two 4-bit codes a byte, the even column in the high nibble."""
    return codes[:, 0::2] << 4 | codes[:, 1::2]


def unpack_high_first(stored: Tensor) -> Tensor:
    """Inverse of `pack_high_first`."""
    return torch.stack((stored >> 4, stored & 15), dim=-1).flatten(1)


def pack_planes(codes: Tensor) -> Tensor:
    """Pack 6-bit codes into two planes side by side; K is a multiple of 4.

    The first holds the low nibbles as `pack_low_first` does, the second the upper two bits of four codes a byte, the
    first column lowest.
    """
    upper = codes >> 4
    fours = upper[:, 0::4] | upper[:, 1::4] << 2 | upper[:, 2::4] << 4 | upper[:, 3::4] << 6
    return torch.cat((pack_low_first(codes & 15), fours), dim=1)


def unpack_planes(stored: Tensor) -> Tensor:
    """Inverse of `pack_planes`."""
    nibbles, fours = stored[:, : stored.shape[1] * 2 // 3], stored[:, stored.shape[1] * 2 // 3 :]
    upper = torch.stack([fours >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(1)
    return unpack_low_first(nibbles) | upper << 4


NIBBLES = Packing(width=Fraction(1, 2), dtype=torch.int8, pack=pack_low_first, unpack=unpack_low_first)
E2M1_NIBBLES = Packing(width=Fraction(1, 2), dtype=torch.uint8, pack=pack_high_first, unpack=unpack_high_first)
SIX_BITS = Packing(width=Fraction(3, 4), dtype=torch.int8, pack=pack_planes, unpack=unpack_planes)
