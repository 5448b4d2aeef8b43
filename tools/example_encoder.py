"""A Gemma 2 text encoder of the least possible size, with the parameter names of the published checkpoints.

It is for training; ComfyUI runs the result. Sources of the architecture: Gemma Team, "Gemma 2: Improving Open Language
Models at a Practical Size" (2024), and ComfyUI 0.29's model for checkpoints with these names: heads of 256, no soft
capping, no sliding window, and the hidden state after the last block but one as the prompt's encoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 256
EPS = 1e-6
ROPE_BASE = 10000.0
PAD = 0
"""Padding token: it attends to the tokens before it, and no token attends to it."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes under the names of ComfyUI's configuration."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int


class Norm(nn.Module):
    """Root mean square normalization; checkpoints store the weight minus one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, 1 + self.weight, EPS)


def rotate(x: Tensor) -> Tensor:
    """Rotate ``x [N, heads, tokens, HEAD_DIM]`` by its position, channel i with channel i + HEAD_DIM / 2."""
    frequency = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2, device=x.device).float() / HEAD_DIM)
    angles = torch.arange(x.shape[2], device=x.device).float()[:, None] * frequency
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention of ``x [N, tokens, hidden]`` where ``mask [N, 1, tokens, tokens]`` is true."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        inner, shared = sizes.num_attention_heads * HEAD_DIM, sizes.num_key_value_heads * HEAD_DIM
        self.q_proj = nn.Linear(sizes.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(sizes.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(sizes.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(inner, sizes.hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(rotate(query), rotate(key), value, mask, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden_size, sizes.intermediate_size, bias=False)
        self.up_proj = nn.Linear(sizes.hidden_size, sizes.intermediate_size, bias=False)
        self.down_proj = nn.Linear(sizes.intermediate_size, sizes.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and after."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = FeedForward(sizes)
        self.input_layernorm = Norm(sizes.hidden_size)
        self.post_attention_layernorm = Norm(sizes.hidden_size)
        self.pre_feedforward_layernorm = Norm(sizes.hidden_size)
        self.post_feedforward_layernorm = Norm(sizes.hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), mask))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Backbone(nn.Module):
    """Token ids ``[N, tokens]`` -> hidden states ``[N, tokens, hidden]`` after the last block but one, and the last."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.num_hidden_layers))
        self.norm = Norm(sizes.hidden_size)  # in every checkpoint; neither of the two states passes it
        nn.init.normal_(self.embed_tokens.weight, std=sizes.hidden_size**-0.5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).tril()
        mask = causal & (tokens != PAD)[:, None, None, :]
        x = self.embed_tokens(tokens) * self.norm.weight.numel() ** 0.5
        for block in self.layers[:-1]:
            x = block(x, mask)
        return x, self.layers[-1](x, mask)


class GemmaEncoder(nn.Module):
    """`Backbone` under its name in checkpoints."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.model = Backbone(sizes)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(tokens)
