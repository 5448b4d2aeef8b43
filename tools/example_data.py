"""Training data of the example models: handwritten digits as latents of a WAN 2.1 model.

The digits are scikit-learn's `load_digits` (1,797 real scans of 8x8 pixels, ten classes). A latent is the picture
itself, enlarged to 32x32 and folded into 16 channels of 8x8, so that the diffusion model needs no autoencoder to train.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

CLASSES = 10
NO_CLASS = 10  # row of the conditioning table for "no class"

# Mean and standard deviation of the pixels of the enlarged digits, which lie in [0, 1].
PIXEL_MEAN, PIXEL_STD = 0.305, 0.36

# Per-channel mean and standard deviation of WAN 2.1 latents, as published in the configuration of Wan-AI/Wan2.1's
# autoencoder (`latents_mean`, `latents_std`). A sampler undoes this scaling before it returns a latent.
WAN_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
WAN_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
           3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip


def load_pictures() -> tuple[Tensor, Tensor]:
    """Load the digits, float32 ``[1797, 1, 8, 8]`` in [0, 1], and their classes, int64 ``[1797]``."""
    digits = load_digits()
    pictures = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    return pictures, torch.from_numpy(digits.target).long()


def enlarge(pictures: Tensor, size: int) -> Tensor:
    """Enlarge pictures ``[N, 1, 8, 8]`` in [0, 1] to ``[N, 1, size, size]``."""
    return F.interpolate(pictures, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def to_model_latent(pictures: Tensor) -> Tensor:
    """Fold pictures ``[N, 1, 32, 32]`` in [0, 1] into latents ``[N, 16, 1, 8, 8]`` in the model's space."""
    return F.pixel_unshuffle((pictures - PIXEL_MEAN) / PIXEL_STD, 4).unsqueeze(2)


def from_model_latent(latent: Tensor) -> Tensor:
    """Invert `to_model_latent`, clamped to [0, 1]."""
    return (F.pixel_shuffle(latent.squeeze(2), 4) * PIXEL_STD + PIXEL_MEAN).clamp(0, 1)


def to_wan_latent(latent: Tensor) -> Tensor:
    """Convert latents ``[N, 16, ...]`` to the unscaled space of WAN 2.1, of samplers' results and autoencoders."""
    mean, std = wan_scaling(latent)
    return latent * std + mean


def from_wan_latent(latent: Tensor) -> Tensor:
    """Invert `to_wan_latent`."""
    mean, std = wan_scaling(latent)
    return (latent - mean) / std


def wan_scaling(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Shape WAN_MEAN and WAN_STD to broadcast against latents ``[N, 16, ...]``."""
    shape = (1, 16) + (1,) * (latent.ndim - 2)
    return latent.new_tensor(WAN_MEAN).view(shape), latent.new_tensor(WAN_STD).view(shape)
