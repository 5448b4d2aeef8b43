"""Weights for the benchmarks: synthetic layers that resemble trained layers, and trained layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from calibrated_rounding.quant.files import CheckpointWriter, open_checkpoint
from torch import Tensor

RANK = 256
DECAY = 0.5
TAIL = 5
"""Degrees of freedom of the noise (Student's t): a row's largest weight lies at 5 to 6 standard deviations."""

NOISE = 0.7
"""Share of the noise in the squared norm."""

LARGE = (30, 4096, 8192)
"""Layers, outputs and inputs of the 2 GB file."""


def make_synthetic(shape: tuple[int, int], seed: int = 1) -> Tensor:
    """Make a bfloat16 weight ``[N, K]``: `RANK` directions with singular values i^-`DECAY`, in heavy-tailed noise.

    The same shape and seed give the same weight.
    """
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, RANK + 1).pow(-DECAY)
    left = torch.randn(shape[0], RANK, generator=generator) * (spectrum / spectrum.norm())
    weight = left @ torch.randn(RANK, shape[1], generator=generator)
    weight.mul_((1 - NOISE) ** 0.5).add_(_student(shape, generator), alpha=NOISE**0.5)
    return weight.mul_(shape[1] ** -0.5).to(torch.bfloat16)


def load_trained(path: Path, most: int = 2) -> dict[str, Tensor]:
    """Read up to ``most`` linear weights from the numbered blocks of a checkpoint, evenly spread over them."""
    with open_checkpoint(path) as checkpoint:
        names = [
            name
            for name, shape in checkpoint.shapes.items()
            if len(shape) == 2 and re.search(r"\.\d+\..+\.weight$", name)
        ]
        chosen = names[:: max(1, -(-len(names) // most))][:most]
        return {name: checkpoint.read(name) for name in chosen}


def save(tensors: Mapping[str, Tensor], path: Path) -> Path:
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with CheckpointWriter(path, layout, {}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.commit()
    return path


def save_large(path: Path) -> Path:
    """Write a bfloat16 checkpoint of the `LARGE` size: one synthetic weight, its rows shifted by one in each layer."""
    count, *shape = LARGE
    weight = make_synthetic((shape[0], shape[1]))
    names = [f"blocks.{i}.ffn.weight" for i in range(count)]
    with CheckpointWriter(path, {name: (weight.dtype, tuple(shape)) for name in names}, {}) as writer:
        for i, name in enumerate(names):
            writer.write(name, weight.roll(i, dims=0))
        writer.commit()
    return path


def _student(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw Student's t of unit variance."""
    chi = torch.zeros(shape)
    for _ in range(TAIL):
        chi.add_(torch.randn(shape, generator=generator).square_())
    return torch.randn(shape, generator=generator).mul_((TAIL - 2) ** 0.5).div_(chi.sqrt_())
