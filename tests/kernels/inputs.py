"""Operands for the tests of kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def codes(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Int8 codes over the whole range."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values with a row of zeros, and magnitudes that differ from row to row."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.rand(*shape[:-1], 1, generator=generator).mul(8).exp2()
    x.view(-1, shape[-1])[0] = 0 if x.numel() > shape[-1] else 1
    return x.to(dtype)


def operands(m: int, n: int, k: int, block: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``a``, ``a_scale``, ``b``, ``b_scale`` of a product."""
    generator = torch.Generator().manual_seed(m + n + k)
    count = 1 if block is None else -(-k // block)
    rows = n if block is None else -(-n // block)
    a_scale = torch.rand(m, count, generator=generator) + 0.5
    b_scale = torch.rand(rows, count, generator=generator) + 0.5
    return codes(m, k, 1), a_scale, codes(n, k, 2), b_scale
