"""What a small Gemma 2 text encoder's header states of it; ComfyUI's loaders take what is true of the 2B model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...quant import QuantError
from ...quant.files import read_header
from ...quant.files.header import TensorInfo
from ...quant.files.strict_json import parse_object

FIELD = "config"
"""The header's field, JSON: {`FAMILY`: {size: number}, `PADDING`: number}."""

FAMILY = "gemma2_2b"
"""ComfyUI's name for the architecture. Of those that it runs quantized, this one fixes no width and needs no tokenizer
beside the file.
"""

PADDING = "min_padding"
"""How many pad tokens end every prompt; left out, none."""

MOST_PADDING = 512

FEWEST_LAYERS = 3
"""ComfyUI encodes with the state after the last layer but one, and takes no encoder where that is the first."""

HEAD_DIM = 256
"""ComfyUI's, for every size of the model."""

EMBEDDING, NORM, TOKENIZER = "model.embed_tokens.weight", "model.norm.weight", "spiece_model"
LAYER = "model.layers.{}.{}.weight"
QUERY, KEY, GATE = "self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"
PARTS = (
    *(QUERY, KEY, "self_attn.v_proj", "self_attn.o_proj"),
    *(GATE, "mlp.up_proj", "mlp.down_proj"),
    *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
"""What every layer has a weight of."""


@dataclass(frozen=True)
class Stated:
    """ComfyUI's options for an encoder and its tokenizer."""

    model: dict[str, dict[str, int]]
    tokenizer: dict[str, int]


def stated(path: Path) -> Stated:
    """The options by which ComfyUI makes of a file the encoder that was trained.

    Raises QuantError for a file that states no sizes, lacks a tensor, or whose tensors have other sizes.
    """
    header = read_header(path)
    config = parse_object(header.metadata.get(FIELD, "{}").encode(), path, f"the header's field '{FIELD}'")
    if FAMILY not in config:
        raise QuantError(
            f"'{path.name}' does not state a small text encoder's sizes in its header; load it with Load CLIP."
        )
    missing = next((name for name in _names(header.tensors) if name not in header.tensors), None)
    if missing is not None:
        raise QuantError(f"'{path.name}' has no tensor '{missing}'; the file is damaged, fetch it again.")
    sizes = _sizes(header.tensors)
    if sizes != config[FAMILY]:
        raise QuantError(
            f"'{path.name}' states other sizes in its header than its tensors have; the file is damaged, fetch it "
            "again."
        )
    return Stated({f"{FAMILY}_model_config": sizes}, {f"{FAMILY}_{PADDING}": _padding(path, config.get(PADDING, 0))})


def _padding(path: Path, tokens: Any) -> int:
    if type(tokens) is not int or not 0 <= tokens <= MOST_PADDING:
        raise QuantError(
            f"'{path.name}' states a '{PADDING}' in its header that is no number up to {MOST_PADDING}; the file is "
            "damaged, fetch it again."
        )
    return tokens


def _layers(tensors: Mapping[str, TensorInfo]) -> int:
    return sum(name.endswith(f".{QUERY}.weight") for name in tensors)


def _names(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Every tensor that an encoder of as many layers needs, quantized or not."""
    yield from (EMBEDDING, NORM, TOKENIZER)
    yield from (LAYER.format(layer, part) for layer in range(max(FEWEST_LAYERS, _layers(tensors))) for part in PARTS)


def _sizes(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """The tensors' sizes, named as in ComfyUI's configuration of the model; FP8 and INT8 keep a weight's shape."""
    query, key, gate = (_matrix(tensors[LAYER.format(0, part)]) for part in (QUERY, KEY, GATE))
    vocabulary, width = _matrix(tensors[EMBEDDING])
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": gate[0],
        "num_hidden_layers": _layers(tensors),
        "num_attention_heads": query[0] // HEAD_DIM,
        "num_key_value_heads": key[0] // HEAD_DIM,
    }


def _matrix(tensor: TensorInfo) -> tuple[int, int]:
    """Rows and columns; none of a tensor that is no matrix."""
    return tensor.shape if len(tensor.shape) == 2 else (0, 0)
