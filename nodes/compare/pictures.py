"""Two models' pictures side by side, with their difference. Knows no ComfyUI."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LEAST_WIDTH = 256
"""Pictures that are narrower are enlarged by whole numbers, so that the labels fit."""

MOST_AMPLIFIED = 256
"""Smaller differences than this makes visible are below one of the 256 shades that are shown."""

LABEL_HEIGHT, LABEL_SIZE, MARGIN = 24, 14, 6


def amplification(reference: Tensor, candidate: Tensor) -> int:
    """The power of two, 1 to `MOST_AMPLIFIED`, that brings the largest difference of ``[N, H, W, 3]`` closest to 1
    from below.
    """
    largest = float((candidate - reference).abs().nan_to_num().max())
    if largest == 0:
        return 1
    return int(min(MOST_AMPLIFIED, 2 ** max(0, math.floor(-math.log2(largest)))))


def side_by_side(reference: Tensor, candidate: Tensor, labels: Sequence[str], factor: int) -> Tensor:
    """Reference, candidate and ``factor`` times their difference, in a row under a label each.

    Pictures are float32 ``[N, H, W, 3]`` in [0, 1]; so is the result, ``[N, H', 3 W', 3]``.
    """
    scale = -(-LEAST_WIDTH // reference.shape[2])
    difference = (candidate - reference).abs().mul(factor).nan_to_num(nan=1.0).clamp(0, 1)
    panels = [_enlarged(pictures, scale) for pictures in (reference, candidate, difference)]
    strip = torch.cat([_label(text, panels[0].shape[2]) for text in labels], dim=1)
    return torch.cat([strip.expand(len(reference), -1, -1, -1), torch.cat(panels, dim=2)], dim=1)


def _enlarged(pictures: Tensor, scale: int) -> Tensor:
    return pictures.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


def _label(text: str, width: int) -> Tensor:
    """White on black, ``[LABEL_HEIGHT, width, 3]``."""
    strip = Image.new("RGB", (width, LABEL_HEIGHT))
    font = ImageFont.load_default(LABEL_SIZE)
    ImageDraw.Draw(strip).text((MARGIN, LABEL_HEIGHT // 2), text, font=font, anchor="lm")
    return torch.from_numpy(np.asarray(strip, dtype=np.float32) / 255)
