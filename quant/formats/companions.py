"""The tensors beside the codes of a quantized layer: their dtypes, and their shapes as rules of the weight's shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import mxfp8
from .base import Shape
from .granularity import PerBlock

Sizes = tuple[int, ...]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
EXPONENTS = tuple(getattr(torch, name) for name in ("uint8", "float8_e8m0fnu") if hasattr(torch, name))
"""Dtypes that E8M0 scales come in."""
BYTES_OF_E4M3 = (torch.float8_e4m3fn, torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A tensor beside the codes of a layer."""

    dtypes: tuple[torch.dtype, ...]
    """Dtypes that it may have."""
    shapes: Callable[[Shape, int], set[Sizes]]
    """Shapes that it may have beside a weight ``(N, K)``, K inputs of which the second argument share a scale."""
    required: bool = True
    """Whether every layer has it."""
    usable: Callable[[Tensor], bool] = lambda values: True
    """Whether its values can be computed with."""


def is_positive(values: Tensor) -> bool:
    """Whether all values are finite and above 0."""
    return bool((torch.isfinite(values) & (values > 0)).all())


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; bytes are E4M3."""
    if values.dtype.itemsize > 1:
        return bool(torch.isfinite(values).all())
    return not bool((values.view(torch.uint8) & 0x7F == 0x7F).any())


def is_exponent(values: Tensor) -> bool:
    """Whether no E8M0 scale is NaN; all others are powers of two."""
    return not bool((values.view(torch.uint8) == 255).any())


def one(shape: Shape, group: int) -> set[Sizes]:
    return {(), (1,)}


def one_or_rows(shape: Shape, group: int) -> set[Sizes]:
    return {(), (1,), (1, 1), (shape[0],), (shape[0], 1)}


def rows(shape: Shape, group: int) -> set[Sizes]:
    return {(shape[0],)}


def columns(shape: Shape, group: int) -> set[Sizes]:
    return {(shape[1],)}


def groups(shape: Shape, group: int) -> set[Sizes]:
    return set() if shape[1] % group else {(shape[0], shape[1] // group)}


def groups_by_column(shape: Shape, group: int) -> set[Sizes]:
    return set() if shape[1] % group else {(shape[1] // group, shape[0])}


def swizzled(shape: Shape, group: int) -> set[Sizes]:
    return {mxfp8.swizzled_shape((shape[0], shape[1] // group))}


def blocks(shape: Shape, group: int) -> set[Sizes]:
    return {PerBlock(group, group).scale_shape(shape)}
