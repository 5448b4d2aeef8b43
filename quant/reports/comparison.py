"""How far a quantized checkpoint is from the float one that it was made of."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import open_checkpoint
from ..files.dequantized import as_float, quantized_layers
from ..files.sources import Source
from ..files.tensors import WEIGHT
from ..formats import FORMATS, marker
from .progress import OnProgress, Progress
from .report import decibels

BLOCK_ELEMENTS = 1 << 20
"""Elements that are taken to float64 at a time."""


@dataclass(frozen=True)
class Difference:
    """error: ||W_q - W|| / ||W||, infinite where W is zero and W_q is not; sqnr_db: the same in decibels.

    format: the marker's for a quantized layer, else the dtype. square and square_error: ||W||^2 and ||W_q - W||^2.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    square: float
    square_error: float

    @property
    def error(self) -> float:
        if self.square == 0:
            return math.inf if self.square_error else 0.0
        return math.sqrt(self.square_error / self.square)

    @property
    def sqnr_db(self) -> float | None:
        return decibels(self.error)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows no infinity."""
        error, noise = self.error, self.sqnr_db
        finite = {"error": error, "sqnr_db": noise} if math.isfinite(error) else {"error": None, "sqnr_db": None}
        return {"name": self.name, "shape": self.shape, "format": self.format} | finite


@dataclass
class Comparison:
    """layers: the quantized ones. changed: other tensors that are not the same. same: how many are.

    missing and extra: tensors of only the float, or only the quantized file. mismatched: tensors of two shapes.
    """

    layers: list[Difference] = field(default_factory=list)
    changed: list[Difference] = field(default_factory=list)
    same: int = 0
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

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

    Raises CheckpointError, also where the files have no tensor in common.
    """
    with ExitStack() as stack:
        left, right = (stack.enter_context(open_checkpoint(path)) for path in (reference, quantized))
        markers = quantized_layers(right)
        floats, rounded = (as_float(source, dequantize=True, dtype=torch.float32) for source in (left, right))
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
                _compare(result, name, floats, rounded, markers)
    return result


def _compare(
    result: Comparison, name: str, floats: Source, rounded: Source, markers: Mapping[str, marker.Marker]
) -> None:
    wanted, found = floats.tensors[name].shape, rounded.tensors[name].shape
    fields = markers.get(name.removesuffix(WEIGHT)) if name.endswith(WEIGHT) else None
    if found != wanted and not _is_padding(wanted, found, fields):
        result.mismatched.append(f"{name}: {list(wanted)} and {list(found)}")
        return
    weight, other = floats.read(name), rounded.read(name)[tuple(slice(size) for size in wanted)]
    square, square_error = _squares(weight, other)
    kind = str(fields.get("format")) if fields is not None else str(other.dtype).removeprefix("torch.")
    difference = Difference(name.removesuffix(WEIGHT) if fields else name, tuple(wanted), kind, square, square_error)
    if fields is not None:
        result.layers.append(difference)
    elif square_error:
        result.changed.append(difference)
    else:
        result.same += 1


def _is_padding(wanted: tuple[int, ...], found: tuple[int, ...], fields: marker.Marker | None) -> bool:
    """Whether ``found`` is ``wanted`` padded as the layer's format pads."""
    if fields is None or len(wanted) != 2:
        return False
    formats = [fmt for fmt in FORMATS.values() if fmt.marker == fields.get("format")]
    return any(fmt.padded_shape((wanted[0], wanted[1])) == tuple(found) for fmt in formats)


def _squares(weight: Tensor, other: Tensor) -> tuple[float, float]:
    square, square_error = 0.0, 0.0
    for a, b in zip(*(torch.split(tensor.reshape(-1), BLOCK_ELEMENTS) for tensor in (weight, other)), strict=True):
        wide = a.to(torch.float64)
        square += float(wide.square().sum())
        square_error += float(wide.sub_(b.to(torch.float64)).square_().sum())
    return square, square_error
