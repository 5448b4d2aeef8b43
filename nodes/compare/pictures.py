"""Pictures of two models side by side, with their difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MIN_WIDTH = 256
"""Narrower pictures are enlarged by a whole number, so that the labels fit."""

MAX_AMPLIFICATION = 256
"""Makes the smallest difference visible that a picture of 256 shades can have."""

LABEL_HEIGHT, LABEL_SIZE, MARGIN = 24, 14, 6


def choose_amplification(reference: Tensor, candidate: Tensor) -> int:
    """The largest power of two, 1 to `MAX_AMPLIFICATION`, that keeps every amplified difference within 1.

    Args:
        reference: ``[N, H, W, 3]`` in [0, 1].
        candidate: The same shape.
    """
    largest = float((candidate - reference).abs().nan_to_num().max())
    if largest == 0:
        return 1
    return int(min(MAX_AMPLIFICATION, 2 ** max(0, math.floor(-math.log2(largest)))))


def draw_side_by_side(reference: Tensor, candidate: Tensor, labels: Sequence[str], factor: int) -> Tensor:
    """Draw reference, candidate and their difference in a row, each under its label.

    Args:
        reference: float32 ``[N, H, W, 3]`` in [0, 1].
        candidate: The same shape.
        labels: Three labels.
        factor: Amplifies the difference.

    Returns:
        float32 ``[N, H', 3 W', 3]`` in [0, 1].
    """
    scale = -(-MIN_WIDTH // reference.shape[2])
    difference = (candidate - reference).abs().mul(factor).nan_to_num(nan=1.0).clamp(0, 1)
    panels = [_enlarge(pictures, scale) for pictures in (reference, candidate, difference)]
    strip = torch.cat([_draw_label(text, panels[0].shape[2]) for text in labels], dim=1)
    return torch.cat([strip.expand(len(reference), -1, -1, -1), torch.cat(panels, dim=2)], dim=1)


def _enlarge(pictures: Tensor, scale: int) -> Tensor:
    return pictures.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


def _draw_label(text: str, width: int) -> Tensor:
    """A label, white on black, ``[LABEL_HEIGHT, width, 3]``."""
    strip = Image.new("RGB", (width, LABEL_HEIGHT))
    font = ImageFont.load_default(LABEL_SIZE)
    ImageDraw.Draw(strip).text((MARGIN, LABEL_HEIGHT // 2), text, font=font, anchor="lm")
    return torch.from_numpy(np.asarray(strip, dtype=np.float32) / 255)
