"""Grids: the values that a code can stand for, before they are scaled.

All functions take and return float32 in units of the grid (a weight divided by its scale). ``below`` and ``above`` are
the grid points around a value, between which a rounding method chooses; ``spacing`` is the distance between grid points
at a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Grid(Protocol):
    """A finite, symmetric set of numbers and the dtype that stores them.

    As in a float format, numbers of exponent ``e`` are ``2^(max(e, smallest_exponent) - mantissa_bits)`` apart.
    """

    @property
    def maximum(self) -> float: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def mantissa_bits(self) -> int: ...
    @property
    def smallest_exponent(self) -> int: ...
    def encode(self, x: Tensor) -> Tensor: ...
    def encode_into(self, x: Tensor, codes: Tensor) -> None: ...
    def below(self, x: Tensor) -> Tensor: ...
    def above(self, x: Tensor) -> Tensor: ...
    def spacing(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class IntegerGrid:
    """Whole numbers from -127 to 127: symmetric, so that negating a weight negates its code."""

    maximum: float = 127.0
    dtype: torch.dtype = torch.int8
    mantissa_bits: int = 6
    smallest_exponent: int = 6

    def encode(self, x: Tensor) -> Tensor:
        """Nearest code of float32 ``x``, halves to even, saturating."""
        return x.round().clamp_(-self.maximum, self.maximum).to(self.dtype)

    def encode_into(self, x: Tensor, codes: Tensor) -> None:
        """Write the codes of `encode` to ``codes``, and what they stand for to ``x``."""
        codes.copy_(x.round_().clamp_(-self.maximum, self.maximum))

    def below(self, x: Tensor) -> Tensor:
        return x.floor().clamp_(-self.maximum, self.maximum)

    def above(self, x: Tensor) -> Tensor:
        return x.ceil().clamp_(-self.maximum, self.maximum)

    def spacing(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


@dataclass(frozen=True, kw_only=True)
class FloatGrid:
    """An 8-bit floating-point format (OCP 8-bit Floating Point Specification, section 5)."""

    dtype: torch.dtype
    maximum: float
    mantissa_bits: int
    smallest_exponent: int

    def encode(self, x: Tensor) -> Tensor:
        """Nearest code of float32 ``x``, halves to even, saturating instead of turning into infinity or NaN."""
        return x.clamp(-self.maximum, self.maximum).to(self.dtype)

    def encode_into(self, x: Tensor, codes: Tensor) -> None:
        """Write the codes of `encode` to ``codes``, and what they stand for to ``x``."""
        codes.copy_(x.clamp_(-self.maximum, self.maximum))
        to_float32(codes, out=x)

    def below(self, x: Tensor) -> Tensor:
        step = self.spacing(x)
        return (x / step).floor_().mul_(step).clamp_(-self.maximum, self.maximum)

    def above(self, x: Tensor) -> Tensor:
        step = self.spacing(x)
        return (x / step).ceil_().mul_(step).clamp_(-self.maximum, self.maximum)

    def spacing(self, x: Tensor) -> Tensor:
        """Constant below the smallest normal number."""
        normal = x.abs().clamp_(min=2.0**self.smallest_exponent)
        # frexp gives a mantissa in [0.5, 1), so its exponent is one above the format's.
        exponent = torch.frexp(normal).exponent.sub_(1 + self.mantissa_bits)
        return torch.ldexp(torch.ones_like(x), exponent)


def to_float32(codes: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the values of 8-bit codes in float32, written to ``out``, contiguous, if it is not None.

    On the CPU, floating-point codes are looked up: torch converts them one at a time, seven times slower.
    """
    if codes.device.type != "cpu" or codes.dtype not in _VALUES:
        return codes.to(torch.float32) if out is None else out.copy_(codes)
    places = codes.contiguous().view(torch.uint8).reshape(-1).to(torch.int32)
    flat = None if out is None else out.view(-1)
    return torch.index_select(_VALUES[codes.dtype], 0, places, out=flat).view(codes.shape)


INT8 = IntegerGrid()
E4M3 = FloatGrid(dtype=torch.float8_e4m3fn, maximum=448.0, mantissa_bits=3, smallest_exponent=-6)
E5M2 = FloatGrid(dtype=torch.float8_e5m2, maximum=57344.0, mantissa_bits=2, smallest_exponent=-14)

_VALUES = {grid.dtype: torch.arange(256, dtype=torch.uint8).view(grid.dtype).to(torch.float32) for grid in (E4M3, E5M2)}
