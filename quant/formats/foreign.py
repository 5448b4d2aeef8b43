"""Weights that other programs have quantized in ways that ComfyUI does not know, recognised by their tensors' names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..bounded_json import parse_json
from .stored import BLOCK_SIZE

PROGRAMS: Mapping[str, str] = {
    "AutoAWQ or GPTQ": r"qzeros|g_idx",
    "SVDQuant (nunchaku)": r"wscales|wzeros|wtscale|wcscales|smooth_factor(_orig)?|smooth_orig",
    "bitsandbytes": r"weight\.(nested_)?(absmax|quant_map)|weight\.quant_state\..+|SCB",
    "compressed-tensors": r"weight_packed|weight_zero_point|weight_global_scale",
    "torchao": r"_weight_(qdata|scale|zero_point|tensor_data)",
    "quanto": r"weight\._(data|scale|shift|zeropoint)",
    "SDNQ": r"svd_up|svd_down",
    "HQQ": r"W_q",
    "AutoAWQ, GPTQ or SVDQuant": r"qweight",
}
"""The names, within a layer, of tensors that only this program writes. Where several match, the first decides."""

_NAMES = {program: re.compile(rf"(?:{names})\Z", re.DOTALL) for program, names in PROGRAMS.items()}
_ANY_NAME = re.compile(rf"(?:{'|'.join(PROGRAMS.values())})\Z", re.DOTALL)
_ENDINGS = re.compile(rf"\.(?:{'|'.join(PROGRAMS.values())})\Z", re.DOTALL)

MEANINGS: Mapping[str, str] = {
    "pre_quant_scale": "a scale of the inputs, as AWQ and SmoothQuant use it",
    "weight_scale_inv": "a scale of blocks, as Hugging Face's FP8 has it",
    "weight_scale_2": "a second scale, as NVFP4 has it",
    "weight_zeros": "zero points",
    "zero_point": "zero points, as SDNQ and torch write them",
    "scale": "a scale, as SDNQ and torch write it",
    "weight_codebook": "a codebook",
    "weight_s_rel": "scales of groups",
    "weight_s_channel": "scales of rows",
    "weight_scalar": "a scale on scales, as hybrid MXFP8 has it",
    "correction": "a correction of asymmetric codes",
    "output_scale": "a scale of the outputs",
}
"""Usual meaning of tensors that a format does not define."""

QUANTIZATION_CONFIG = "quantization_config"
"""The header entry in which Hugging Face's libraries describe how a model is quantized."""


def owner(name: str) -> str | None:
    """The layer that a tensor of another program belongs to; None for any other tensor."""
    found = _ENDINGS.search(name)
    return None if found is None else name[: found.start()]


def evidence(parts: Iterable[str]) -> tuple[str, str] | None:
    """The program that wrote a layer, and the tensor that shows it.

    Args:
        parts: the names of the layer's tensors, within the layer.

    Returns:
        None where no program is known to write such a layer.
    """
    suspects = [part for part in parts if _ANY_NAME.match(part)]
    candidates = [(program, part) for part in suspects for program, names in _NAMES.items() if names.match(part)]
    return min(candidates, key=lambda found: list(PROGRAMS).index(found[0]), default=None)


def config_method(metadata: Mapping[str, str]) -> str:
    """The method that a header's quantization config names; empty where it has none, or one that is understood.

    Block FP8 is understood: see `stored.UNMARKED_BLOCK_FP8`.
    """
    config = _config(metadata)
    if config is None:
        return ""
    method, blocks = config.get("quant_method"), config.get("weight_block_size")
    understood = method == "fp8" and blocks == [BLOCK_SIZE, BLOCK_SIZE]
    return "" if understood else json.dumps(method)


def _config(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The config, empty where it cannot be read; None where there is none."""
    if QUANTIZATION_CONFIG not in metadata:
        return None
    try:
        config = parse_json(metadata[QUANTIZATION_CONFIG])
    except ValueError:
        config = None
    return config if isinstance(config, dict) else {}
