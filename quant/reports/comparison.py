"""Distance of a quantized checkpoint from its float original."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, UnreadableLayerError
from ..files import Checkpoint, open_checkpoint
from ..files.dequantized import as_float
from ..files.quantized import StoredLayer, quantized_layers
from ..files.sources import Source
from ..files.tensors import WEIGHT, dtype_name
from ..layer.layer_errors import decibels
from .progress import OnProgress, Progress

BLOCK_ELEMENTS = 1 << 20
"""Elements that are taken to float64 at a time."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of one tensor from its float original."""

    name: str
    """Of the layer, or of a tensor that is not quantized."""
    shape: tuple[int, ...]
    """Of the float tensor."""
    format: str
    """Of a quantized layer, as recipes name it; of any other tensor, its dtype."""
    square: float
    """||W||^2"""
    square_error: float
    """||W_q - W||^2"""

    @property
    def error(self) -> float:
        """||W_q - W|| / ||W||, infinite where W is zero and W_q is not."""
        if self.square == 0:
            return math.inf if self.square_error else 0.0
        return math.sqrt(self.square_error / self.square)

    @property
    def sqnr_db(self) -> float | None:
        """The error as a signal-to-noise ratio in decibels; None for no error at all."""
        return decibels(self.error)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity and no NaN."""
        error, noise = self.error, self.sqnr_db
        finite = {"error": error, "sqnr_db": noise} if math.isfinite(error) else {"error": None, "sqnr_db": None}
        return {"name": self.name, "shape": self.shape, "format": self.format} | finite


@dataclass(kw_only=True)
class Comparison:
    """Result of `compare_files`."""

    layers: list[Difference] = field(default_factory=list)
    """The quantized layers."""
    changed: list[Difference] = field(default_factory=list)
    """Other tensors that are not the same."""
    same: int = 0
    """Number of other tensors that are the same."""
    missing: list[str] = field(default_factory=list)
    """Tensors of the float file only."""
    extra: list[str] = field(default_factory=list)
    """Tensors of the quantized file only."""
    mismatched: list[str] = field(default_factory=list)
    """Tensors of different shapes, with both shapes."""

    @property
    def total_error(self) -> float:
        """Relative error of all quantized weights taken together."""
        square = sum(layer.square for layer in self.layers)
        return math.sqrt(sum(layer.square_error for layer in self.layers) / square) if square else 0.0

    @property
    def mean_error(self) -> float:
        """Root mean square of the layers' relative errors, as in `Report`."""
        errors = [layer.error for layer in self.layers]
        return math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else 0.0

    def to_dict(self) -> dict[str, Any]:
        rows = {"layers": self.layers, "changed": self.changed}
        totals = {name: value if math.isfinite(value) else None for name, value in self._totals().items()}
        return asdict(self) | {name: [row.to_dict() for row in kind] for name, kind in rows.items()} | totals

    def _totals(self) -> dict[str, float]:
        return {"total_error": self.total_error, "mean_error": self.mean_error}


def compare_files(
    reference: str | os.PathLike[str], quantized: str | os.PathLike[str], progress: OnProgress | None = None
) -> Comparison:
    """Compare two checkpoints tensor by tensor, each dequantized where it is quantized; one tensor is held at a time.

    Args:
        reference: the model before it was quantized.
        quantized: the model made of it.
        progress: called before each tensor and at the end.

    Raises:
        CheckpointError: for a file that cannot be read, a quantized layer that cannot be dequantized exactly, and files
            without a tensor in common.
    """
    with ExitStack() as stack:
        left, right = (stack.enter_context(open_checkpoint(path)) for path in (reference, quantized))
        quantized_ones = quantized_layers(right)
        floats, rounded = _floats(left), _floats(right)
        common = [name for name in floats.tensors if name in rounded.tensors]
        if not common:
            raise CheckpointError(f"{reference} and {quantized} have no tensor in common: they are not one model.")
        result = Comparison(
            missing=[name for name in floats.tensors if name not in rounded.tensors],
            extra=[name for name in rounded.tensors if name not in floats.tensors],
        )
        sizes = [torch.Size(floats.tensors[name].shape).numel() for name in common]
        for i, name in enumerate([*common, None]):
            if progress is not None:
                progress(
                    Progress(
                        done=i,
                        total=len(common),
                        weights_done=sum(sizes[:i]),
                        weights_total=sum(sizes),
                        next_layer=name,
                        last=None,
                    )
                )
            if name is not None:
                _compare(result, name, floats, rounded, quantized_ones)
    return result


def _floats(checkpoint: Checkpoint) -> Source:
    try:
        return as_float(checkpoint, dequantize=True, dtype=torch.float32)
    except UnreadableLayerError as error:
        raise UnreadableLayerError(f"{checkpoint.path}: {error}") from None


def _compare(result: Comparison, name: str, floats: Source, rounded: Source, layers: Mapping[str, StoredLayer]) -> None:
    wanted, found = tuple(floats.tensors[name].shape), tuple(rounded.tensors[name].shape)
    layer = layers.get(name.removesuffix(WEIGHT)) if name.endswith(WEIGHT) else None
    if found != wanted and not _is_padding(wanted, found, layer):
        result.mismatched.append(f"{name}: {list(wanted)} and {list(found)}")
        return
    weight, other = floats.read(name), rounded.read(name)[tuple(slice(size) for size in wanted)]
    square, square_error = _squares(weight, other)
    difference = Difference(
        name=name if layer is None else layer.name,
        shape=wanted,
        format=dtype_name(other.dtype) if layer is None else layer.recipe_format,
        square=square,
        square_error=square_error,
    )
    if layer is not None:
        result.layers.append(difference)
    elif square_error:
        result.changed.append(difference)
    else:
        result.same += 1


def _is_padding(wanted: tuple[int, ...], found: tuple[int, ...], layer: StoredLayer | None) -> bool:
    """Whether ``found`` is ``wanted`` padded as the layer's format pads."""
    return layer is not None and layer.stored is not None and layer.stored.padded(wanted) == found


def _squares(weight: Tensor, other: Tensor) -> tuple[float, float]:
    square, square_error = 0.0, 0.0
    weight, other = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in (weight, other))
    for a, b in zip(*(torch.split(tensor.reshape(-1), BLOCK_ELEMENTS) for tensor in (weight, other)), strict=True):
        wide = a.to(torch.float64)
        square += float(wide.square().sum())
        square_error += float(wide.sub_(b.to(torch.float64)).square_().sum())
    return square, square_error
