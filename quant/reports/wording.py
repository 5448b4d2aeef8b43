"""Sentences that the command line, the nodes and the text reports share."""

from __future__ import annotations

from collections.abc import Mapping

from ..layer.layer_errors import PAIRS, ErrorPair
from ..text import counted, megabytes, percent

TITLES: Mapping[str, str] = {
    "weight": "weight error",
    "output_w8a16": "output error (W8A16)",
    "output_w8a8": "output error (W8A8)",
    "projected": "projected error",
}
"""Titles of the pairs of `LayerErrors`, in the order of a table."""
assert TITLES.keys() == set(PAIRS)


def count_layers(quantized: str, kept: int, kept_bytes: int, other_bytes: int) -> str:
    """``19 layers quantized, 8 kept (2.70 MB), norms and biases 0.10 MB``.

    Args:
        quantized: the first part.
        kept: number of layers that stay in floating point.
        kept_bytes: of their weights.
        other_bytes: of all other tensors that are not quantized.
    """
    parts = [quantized, *([f"{kept} kept ({megabytes(kept_bytes)} MB)"] if kept else [])]
    return ", ".join([*parts, *([f"norms and biases {megabytes(other_bytes)} MB"] if other_bytes else [])])


def count_quantized(layers: int) -> str:
    return f"{counted(layers, 'layer')} quantized"


def describe_errors(pairs: Mapping[str, ErrorPair]) -> list[str]:
    """The error that judges a model: of its output, else, after `svd` rounding, the one that was minimized.

    The error of the weights alone says little of the output's, so that it is in tables only.
    """
    names = [name for name in ("output_w8a8", "projected") if name in pairs][:1]
    return [f"{TITLES[name]} {_against_nearest(pairs[name])}" for name in names]


def describe_weights(pairs: Mapping[str, ErrorPair]) -> list[str]:
    """The error of the weights, named for what it is, where the output's was not measured."""
    if "output_w8a8" in pairs or "weight" not in pairs:
        return []
    weight = percent(pairs["weight"].error)
    return [f"{TITLES['weight']} {weight} (of the weights alone: the output needs a calibration)"]


def _against_nearest(pair: ErrorPair) -> str:
    """``2.10%, 28% closer than nearest (2.91%)``."""
    if pair.error == pair.nearest or not pair.nearest:
        return percent(pair.error)
    gain = 1 - pair.error / pair.nearest
    words = f"{abs(gain):.0%} {'closer than' if gain > 0 else 'further off than'} nearest"
    return f"{percent(pair.error)}, {words} ({percent(pair.nearest)})"
