"""Rounding errors, computed from the quantized files alone, whichever converter wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from calibrated_rounding.quant.files import Checkpoint, open_checkpoint
from calibrated_rounding.quant.formats.marker import SUFFIX, Marker
from calibrated_rounding.quant.formats.rotation import rotate
from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """Relative errors over all layers of a file; E is the error of the weights W."""

    weight: float
    """||E|| / ||W||."""
    projected: float
    """||U^T E V|| / ||U^T W V||, with the k leading singular directions U, V of each weight in its codes' basis."""


class Exact:
    """Float weights and their exact singular directions, computed once for each basis of the codes.

    Args:
        weights: Float ``[N, K]`` by name.
        top_p: Share of the singular directions to keep.
        min_k: Least number of directions; with ``top_p`` it sets k as in both converters.
    """

    def __init__(self, weights: Mapping[str, Tensor], top_p: float, min_k: int) -> None:
        self._weights, self._top_p, self._min_k = weights, top_p, min_k
        self._cache: dict[tuple[str, int | None], tuple[Tensor, Tensor, Tensor]] = {}

    def errors(self, path: Path) -> Errors:
        """Compute the errors of a quantized file."""
        sums = torch.zeros(4, dtype=torch.float64)
        with open_checkpoint(path) as checkpoint:
            for name in self._weights:
                sums += self._layer(checkpoint, name.removesuffix(".weight"))
        error, weight, projected_error, projected = sums.sqrt().tolist()
        return Errors(error / weight, projected_error / projected)

    def _layer(self, checkpoint: Checkpoint, layer: str) -> Tensor:
        group = Marker.from_tensor(layer, checkpoint.read(layer + SUFFIX)).rotation_group
        weight, left, right = self._directions(f"{layer}.weight", group)
        codes = checkpoint.read(f"{layer}.weight").to(torch.float32)
        error = codes * checkpoint.read(f"{layer}.weight_scale") - weight
        parts = (error, weight, left.T @ error @ right, left.T @ weight @ right)
        return torch.stack([part.double().square().sum() for part in parts])

    def _directions(self, name: str, group: int | None) -> tuple[Tensor, Tensor, Tensor]:
        if (name, group) not in self._cache:
            weight = self._weights[name].to(torch.float32)
            weight = rotate(weight, group) if group else weight
            k = max(self._min_k, int(self._top_p * min(weight.shape)))
            left, _, right = torch.linalg.svd(weight, full_matrices=False)
            self._cache[name, group] = weight, left[:, :k], right[:k].T
        return self._cache[name, group]
