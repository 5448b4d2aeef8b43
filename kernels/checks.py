"""Operands that do not fit each other are refused before a kernel could read past their ends."""

from __future__ import annotations

import torch
from torch import Tensor

from .eager.feedback import Inputs
from .eager.quantize import groups
from .errors import KernelError

BLOCKS = (64, 128)
GROUPS = (16, 64, 256)
APPROXIMATE = ("none", "tanh")
ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)
LONGEST = 131_071
"""Largest K whose products cannot overflow int32, even where every code is -128: K x 2^14 < 2^31. Promised is 65,536.
"""

MOST_INPUTS = 128
"""Of a block of error feedback: as many as a program can hold the errors of."""


def block(value: int | None) -> None:
    """A scale block is one of `BLOCKS`, or None for one scale a row."""
    _require(
        value is None or value in BLOCKS, f"Scale block {value} is not one that the kernels know; choose 64 or 128."
    )


def floating(x: Tensor) -> None:
    _require(
        x.ndim > 0 and x.dtype in ACTIVATIONS, f"Expected a bfloat16, float16 or float32 tensor, got {_describe(x)}."
    )


def quantized(codes: Tensor, scale: Tensor, size: int | None) -> None:
    """``codes [..., K]`` int8 with their scales per row or per group."""
    _require(codes.ndim > 0 and codes.dtype == torch.int8, f"Codes are int8 [..., K], got {_describe(codes)}.")
    count = 1 if size is None else groups(codes.shape[-1], size)
    _scale("Scales", scale, (*codes.shape[:-1], count))


def weight(codes: Tensor, scale: Tensor, size: int) -> None:
    """``codes [N, K]`` int8 with one scale a block x block tile."""
    _require(codes.ndim == 2 and codes.dtype == torch.int8, f"Weight codes are int8 [N, K], got {_describe(codes)}.")
    _scale("Weight scales", scale, (groups(codes.shape[0], size), groups(codes.shape[1], size)))


def matrix(w: Tensor) -> None:
    floating(w)
    _require(w.ndim == 2, f"Weights are [N, K], got {_describe(w)}.")


def operands(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, size: int | None) -> None:
    """Everything that a product is made of."""
    block(size)
    _require(a.ndim == 2 and b.ndim == 2, f"A product takes matrices, got {_describe(a)} and {_describe(b)}.")
    quantized(a, a_scale, size)
    (m, k), n = a.shape, b.shape[0]
    _require(b.shape[1] == k, f"Operands [{m}, {k}] and {list(b.shape)} do not share their inner dimension.")
    if size is None:
        _require(k <= LONGEST, f"An inner dimension of {k} could overflow 32 bits; at most {LONGEST} is possible.")
        _require(b.dtype == torch.int8, f"Codes are int8 [N, K], got {_describe(b)}.")
        _scale("Weight scales", b_scale, (n, 1) if b_scale.ndim else ())
    else:
        weight(b, b_scale, size)
    _require(bias is None or bias.shape == (n,), f"A bias for {n} outputs is [{n}].")


def group(x: Tensor, size: int) -> None:
    """A rotation group is one of `GROUPS` and divides K."""
    floating(x)
    _require(size in GROUPS, f"Rotation group {size} is not one that the kernels know; choose 16, 64 or 256.")
    _require(x.shape[-1] % size == 0, f"Rotation group {size} does not divide a row of {x.shape[-1]}.")


def approximate(value: str) -> None:
    _require(value in APPROXIMATE, f"GELU's approximation {value!r} is unknown; choose none or tanh.")


def inputs(block: Inputs, *others: Tensor) -> None:
    """A block of inputs for error feedback with the ``[B, N]`` tensors that go with it."""
    shape = block.weight.shape
    _require(len(shape) == 2 and shape[0] <= MOST_INPUTS, f"At most {MOST_INPUTS} inputs [B, N], got {list(shape)}.")
    for x in (block.weight, *others, *(block.limits or ())):
        fits = x.dtype == torch.float32 and x.shape == shape and (x.stride(1) == 1 or shape[1] < 2)
        _require(fits, f"Expected float32 {list(shape)} with contiguous rows, got {_describe(x)}.")
    _scale("Scales", block.scale, tuple(shape))
    _scale("Weights of errors", block.within, (shape[0], shape[0]))


def _scale(name: str, scale: Tensor, shape: tuple[int, ...]) -> None:
    fits = scale.dtype == torch.float32 and scale.shape == shape
    _require(fits, f"{name} must be float32 {list(shape)} here, got {_describe(scale)}.")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise KernelError(sentence)


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
