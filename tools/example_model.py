"""A WAN 2.1 text-to-video transformer of the least possible size, with the parameter names of published checkpoints.

It is for training; ComfyUI runs the result. Sources of the architecture: Wan-AI/Wan2.1, and ComfyUI 0.29's model for
checkpoints with these names: heads of 128, patches of (1, 2, 2), sinusoids of 256, normalised queries and keys.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 128
FREQUENCY_DIM = 256
CHANNELS = 16
PATCH = 2
EPS = 1e-6
TIMESTEPS = 1000  # the model's timestep is sigma * TIMESTEPS


def sinusoids(timestep: Tensor) -> Tensor:
    """Embed timesteps ``[N]``: ``[N, FREQUENCY_DIM]``, all cosines, then all sines."""
    half = FREQUENCY_DIM // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, device=timestep.device) / half)
    angle = timestep.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def rotary_angles(frames: int, height: int, width: int) -> Tensor:
    """Compute angles ``[frames * height * width, HEAD_DIM / 2]``; each axis rotates a share of the channel pairs."""
    sixth = 2 * (HEAD_DIM // 6)
    shares = (HEAD_DIM - 2 * sixth, sixth, sixth)
    positions = torch.cartesian_prod(*(torch.arange(n).double() for n in (frames, height, width)))
    frequencies = (10000.0 ** (-torch.arange(0, share, 2).double() / share) for share in shares)
    return torch.cat([positions[:, axis, None] * f for axis, f in enumerate(frequencies)], dim=1).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of ``x [N, tokens, heads, HEAD_DIM]`` by angles ``[tokens, HEAD_DIM / 2]``."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    """Attention of ``x [N, tokens, dim]`` over ``source [N, other tokens, dim]``, rotary with angles."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(dim, eps=EPS)
        self.norm_k = nn.RMSNorm(dim, eps=EPS)

    def forward(self, x: Tensor, source: Tensor, angles: Tensor | None = None) -> Tensor:
        query, key, value = (
            y.unflatten(-1, (-1, HEAD_DIM))
            for y in (self.norm_q(self.q(x)), self.norm_k(self.k(source)), self.v(source))
        )
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        mixed = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (query, key, value)))
        return self.o(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the time modulates the first and the last."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim)
        self.cross_attn = Attention(dim)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, angles: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + time).chunk(6, dim=1)
        y = modulated_norm(x, shift1, scale1)
        x = x + gate1 * self.self_attn(y, y, angles)
        x = x + self.cross_attn(self.norm3(x), context)
        return x + gate2 * self.ffn(modulated_norm(x, shift2, scale2))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return shift + F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale)


class Head(nn.Module):
    """Tokens ``[N, tokens, dim]``, time ``[N, dim]`` -> patches ``[N, tokens, PATCH * PATCH * CHANNELS]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, PATCH * PATCH * CHANNELS)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time[:, None]).chunk(2, dim=1)
        return self.head(modulated_norm(x, shift, scale))


class WanTransformer(nn.Module):
    """Predicts the velocity ``noise - latent`` of a noisy latent."""

    def __init__(self, dim: int, ffn_dim: int, blocks: int, text_dim: int) -> None:
        super().__init__()
        patch = (1, PATCH, PATCH)
        self.patch_embedding = nn.Conv3d(CHANNELS, dim, kernel_size=patch, stride=patch)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(FREQUENCY_DIM, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, ffn_dim) for _ in range(blocks))
        self.head = Head(dim)
        self.apply(initialise)
        nn.init.zeros_(self.head.head.weight)

    def forward(self, latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Predict the velocity, of the latent's shape.

        Args:
            latent: ``[N, 16, frames, height, width]``, height and width even.
            timestep: ``[N]`` in [0, TIMESTEPS].
            context: ``[N, tokens, text_dim]``.
        """
        x = self.patch_embedding(latent)
        grid = tuple(x.shape[2:])
        angles = rotary_angles(*grid).to(x)
        x = x.flatten(2).transpose(1, 2)
        time = self.time_embedding(sinusoids(timestep).to(x))
        block_time = self.time_projection(time).unflatten(1, (6, -1))
        context = self.text_embedding(context)
        for block in self.blocks:
            x = block(x, block_time, context, angles)
        return unpatch(self.head(x, time), grid)


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def unpatch(patches: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Arrange patches ``[N, tokens, PATCH * PATCH * CHANNELS]`` of a (frames, height, width) grid as a latent."""
    frames, height, width = grid
    x = patches.view(-1, frames, height, width, PATCH, PATCH, CHANNELS)
    return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, CHANNELS, frames, height * PATCH, width * PATCH)
