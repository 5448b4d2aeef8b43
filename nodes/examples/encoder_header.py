"""The header of a small Gemma 2 text encoder: the sizes, which ComfyUI's loaders take from the 2B model."""

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
"""Text field of the header, JSON: {`FAMILY`: {size: number}, `PADDING`: number}."""

FAMILY = "gemma2_2b"
"""ComfyUI's name for the architecture: of those that it runs quantized, the one without fixed widths and with the
tokenizer in the file.
"""

PADDING = "min_padding"
"""Number of pad tokens at the end of every prompt; 0 if left out."""

MAX_PADDING = 512

MIN_LAYERS = 3
"""ComfyUI encodes with the state after the last layer but one, which must not be the first."""

HEAD_DIM = 256
"""Fixed by ComfyUI for every size of the model."""

EMBEDDING, NORM, TOKENIZER = "model.embed_tokens.weight", "model.norm.weight", "spiece_model"
LAYER = "model.layers.{}.{}.weight"
QUERY, KEY, GATE = "self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"
PARTS = (
    *(QUERY, KEY, "self_attn.v_proj", "self_attn.o_proj"),
    *(GATE, "mlp.up_proj", "mlp.down_proj"),
    *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
"""Modules of every layer that have a weight."""


@dataclass(frozen=True)
class EncoderOptions:
    """Options with which ComfyUI builds the encoder that was trained."""

    model: dict[str, dict[str, int]]
    """For the loader."""
    tokenizer: dict[str, int]
    """For the tokenizer."""


def read_encoder_options(path: Path) -> EncoderOptions:
    """Read the options from a file's header.

    Raises:
        QuantError: if the header has no sizes, a tensor is missing, or the tensors have other sizes.
    """
    header = read_header(path)
    config = parse_object(header.metadata.get(FIELD, "{}").encode(), path, f"the header's field '{FIELD}'")
    if FAMILY not in config:
        raise QuantError(
            f"'{path.name}' does not state a small text encoder's sizes in its header; load it with Load CLIP."
        )
    missing = next((name for name in _list_names(header.tensors) if name not in header.tensors), None)
    if missing is not None:
        raise QuantError(f"'{path.name}' has no tensor '{missing}'; the file is damaged, fetch it again.")
    sizes = _read_sizes(header.tensors)
    if sizes != config[FAMILY]:
        raise QuantError(
            f"'{path.name}' states other sizes in its header than its tensors have; the file is damaged, fetch it "
            "again."
        )
    padding = _check_padding(path, config.get(PADDING, 0))
    return EncoderOptions({f"{FAMILY}_model_config": sizes}, {f"{FAMILY}_{PADDING}": padding})


def _check_padding(path: Path, tokens: Any) -> int:
    if type(tokens) is not int or not 0 <= tokens <= MAX_PADDING:
        raise QuantError(
            f"'{path.name}' states a '{PADDING}' in its header that is no number up to {MAX_PADDING}; the file is "
            "damaged, fetch it again."
        )
    return tokens


def _count_layers(tensors: Mapping[str, TensorInfo]) -> int:
    return sum(name.endswith(f".{QUERY}.weight") for name in tensors)


def _list_names(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """The tensors that an encoder of this many layers needs, quantized or not."""
    yield from (EMBEDDING, NORM, TOKENIZER)
    yield from (LAYER.format(layer, part) for layer in range(max(MIN_LAYERS, _count_layers(tensors))) for part in PARTS)


def _read_sizes(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """The sizes by the tensors' shapes, named as in ComfyUI's configuration; FP8 and INT8 keep a weight's shape."""
    query, key, gate = (_matrix(tensors[LAYER.format(0, part)]) for part in (QUERY, KEY, GATE))
    vocabulary, width = _matrix(tensors[EMBEDDING])
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": gate[0],
        "num_hidden_layers": _count_layers(tensors),
        "num_attention_heads": query[0] // HEAD_DIM,
        "num_key_value_heads": key[0] // HEAD_DIM,
    }


def _matrix(tensor: TensorInfo) -> tuple[int, int]:
    """Rows and columns; zeros if the tensor is no matrix."""
    return tensor.shape if len(tensor.shape) == 2 else (0, 0)
