"""A WAN 2.1 autoencoder for single frames, 1/12 as wide as the published one, with its parameter names.

The published network is causal in time: the last temporal tap of a kernel sees the present frame, the others earlier
frames. A picture has no earlier frame, so only the last tap is trained here; the others stay zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (1, 2, 4, 4)  # multiples of `dim`, from pixels down to latents
LATENT_CHANNELS = 16
DOWN_IN_TIME = (False, True, True)


class FrameConv(nn.Conv3d):
    """A causal 3-D convolution of one frame: ``[N, C, H, W]`` -> ``[N, C', H, W]``."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__(in_channels, out_channels, size)
        mask = torch.zeros(size)
        mask[-1] = 1
        self.weight.data *= mask[:, None, None] * size**0.5
        self.pad = size // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, -1], self.bias, padding=self.pad)


class Norm(nn.Module):
    """Scales each pixel's channels to unit root mean square; ``axes`` gives the parameter its shape in checkpoints."""

    def __init__(self, dim: int, axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * axes))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-12) * self.gamma.view(-1, 1, 1)


class Residual(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            Norm(in_dim), nn.SiLU(), FrameConv(in_dim, out_dim, 3),
            Norm(out_dim), nn.SiLU(), nn.Identity(), FrameConv(out_dim, out_dim, 3),
        )  # fmt: skip
        self.shortcut = nn.Identity() if in_dim == out_dim else FrameConv(in_dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class PixelAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Norm(dim, axes=2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(*qkv)
        return x + self.proj(mixed.squeeze(1).transpose(1, 2).view_as(x))


class Resample(nn.Module):
    """Halves or doubles height and width; ``time_conv`` is for later frames and stays zero."""

    def __init__(self, resample: nn.Sequential, dim: int, time_dim: int) -> None:
        super().__init__()
        self.resample = resample
        if time_dim:
            self.time_conv = nn.Conv3d(dim, time_dim, (3, 1, 1))
            nn.init.zeros_(self.time_conv.weight)
            nn.init.zeros_(self.time_conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


def downsample(dim: int, in_time: bool) -> Resample:
    return Resample(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2)), dim, dim * in_time)


def upsample(dim: int, in_time: bool) -> Resample:
    return Resample(
        nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(dim, dim // 2, 3, padding=1)),
        dim,
        2 * dim * in_time,
    )


def middle(dim: int) -> nn.Sequential:
    return nn.Sequential(Residual(dim, dim), PixelAttention(dim), Residual(dim, dim))


def output(dim: int, channels: int) -> nn.Sequential:
    return nn.Sequential(Norm(dim), nn.SiLU(), FrameConv(dim, channels, 3))


class Encoder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = FrameConv(3, dim, 3)
        layers: list[nn.Module] = []
        width = dim
        for level, multiple in enumerate(WIDTHS):
            layers += [Residual(width, dim * multiple), Residual(dim * multiple, dim * multiple)]
            width = dim * multiple
            if level < len(DOWN_IN_TIME):
                layers.append(downsample(width, DOWN_IN_TIME[level]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(width)
        self.head = output(width, 2 * LATENT_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        width = dim * WIDTHS[-1]
        self.conv1 = FrameConv(LATENT_CHANNELS, width, 3)
        self.middle = middle(width)
        layers: list[nn.Module] = []
        for level, multiple in enumerate(reversed(WIDTHS)):
            layers += [Residual(width, dim * multiple)] + [Residual(dim * multiple, dim * multiple) for _ in range(2)]
            width = dim * multiple
            if level < len(DOWN_IN_TIME):
                layers.append(upsample(width, DOWN_IN_TIME[::-1][level]))
                width //= 2
        self.upsamples = nn.Sequential(*layers)
        self.head = output(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upsamples(self.middle(self.conv1(x))))


class WanAutoencoder(nn.Module):
    """RGB pictures ``[N, 3, H, W]`` in [-1, 1] <-> unscaled WAN latents ``[N, 16, H / 8, W / 8]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = Encoder(dim)
        self.conv1 = FrameConv(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.conv2 = FrameConv(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = Decoder(dim)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.conv1(self.encoder(pictures))[:, :LATENT_CHANNELS]

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder(self.conv2(latent))
