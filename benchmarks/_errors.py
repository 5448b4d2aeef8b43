"""What rounding cost, computed from the files alone, whoever wrote them."""

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
    """Over all layers of a file, relative. weight: ||E|| / ||W||. projected: ||U^T E V|| / ||U^T W V||, where U and V
    are the k leading singular directions of each float weight, in the basis that its codes lie in.
    """

    weight: float
    projected: float


class Exact:
    """Float weights and their exact singular directions, found once for each basis that codes come in.

    ``top_p`` and ``min_k`` choose k as both converters do.
    """

    def __init__(self, weights: Mapping[str, Tensor], top_p: float, min_k: int) -> None:
        self._weights, self._top_p, self._min_k = weights, top_p, min_k
        self._known: dict[tuple[str, int | None], tuple[Tensor, Tensor, Tensor]] = {}

    def errors(self, path: Path) -> Errors:
        """The errors that are left in a quantized file."""
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
        if (name, group) not in self._known:
            weight = self._weights[name].to(torch.float32)
            weight = rotate(weight, group) if group else weight
            k = max(self._min_k, int(self._top_p * min(weight.shape)))
            left, _, right = torch.linalg.svd(weight, full_matrices=False)
            self._known[name, group] = weight, left[:, :k], right[:k].T
        return self._known[name, group]
