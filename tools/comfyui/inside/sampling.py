"""Sampling of the shipped digits model in ComfyUI's interpreter."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from torch import Tensor

NOTHING = 10
"""Row of the digits' conditioning table that stands for "nothing asked"."""


def sample(model: Any, table: Tensor, seed: int) -> Tensor:
    """Sample one of each digit in 20 steps.

    Args:
        model: A ModelPatcher.
        table: The conditioning table ``[11, tokens, width]``.
        seed: Of the noise.

    Returns:
        Latents ``[10, 16, 1, 8, 8]``.
    """
    return _sample(model, table, digits=10, steps=20, seed=seed)


def sample_briefly(model: Any, table: Tensor) -> Tensor:
    """Sample two digits in four steps: enough to tell models apart bit by bit, and quick.

    Returns:
        Latents ``[2, 16, 1, 8, 8]``.
    """
    return _sample(model, table, digits=2, steps=4, seed=0)


def conditions(table: Tensor, digits: int) -> dict[str, list[Any]]:
    """Make the inputs ``positive`` and ``negative`` of a sampler for the first digits."""
    return {"positive": [[table[:digits], {}]], "negative": [[table[NOTHING:].expand(digits, -1, -1), {}]]}


def _sample(model: Any, table: Tensor, *, digits: int, steps: int, seed: int) -> Tensor:
    empty = torch.zeros(digits, 16, 1, 8, 8)
    noise = comfy.sample.prepare_noise(empty, seed)
    asked = conditions(table, digits)
    latents: Tensor = comfy.sample.sample(
        model, noise, steps, 3.0, "euler", "simple", *asked.values(), empty, seed=seed, disable_pbar=True
    )
    return latents
