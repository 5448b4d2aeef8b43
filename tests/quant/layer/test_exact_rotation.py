"""Rotation by small products: the bits of the whole product, whatever the weights are."""

from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.formats.rotation import rotate
from calibrated_rounding.quant.layer import exact_rotation
from calibrated_rounding.quant.layer.exact_rotation import GROUP, rotate_exactly
from calibrated_rounding.quant.layer.workspace import Workspace
from comfy_kitchen.tensor.int8_utils import _build_hadamard, _rotate_weight


def make(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(kind))
    weight = torch.randn(shape, generator=generator)
    if kind == "heavy tails":
        weight *= torch.randn(shape, generator=generator).pow(6)
    if kind == "zeros":
        weight[torch.rand(shape, generator=generator) < 0.01] = 0
        weight[::2] = 0
    if kind == "one in a group":
        weight[:, torch.arange(shape[1]) % GROUP > 0] = 0
    scale = {"subnormal": 2.0**-130, "tiny": 2.0**-105, "huge": 2.0**122}.get(kind, 0.02)
    return (weight * scale).to(torch.bfloat16)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "zeros", "one in a group", "subnormal", "tiny", "huge"])
@pytest.mark.parametrize("shape", [(64, 1024), (4, 256), (300, 256), (33, 4096)])
def test_small_products_give_the_whole_products_bits(kind: str, shape: tuple[int, int]) -> None:
    stored = make(kind, shape)
    weight = stored.to(torch.float32)
    result = rotate_exactly(stored, weight.clone(), Workspace(weight.device))
    assert torch.equal(result, rotate(weight, GROUP))
    assert torch.equal(result, _rotate_weight(weight, _build_hadamard(GROUP), GROUP))


def test_few_groups_of_trained_weights_need_the_whole_matrix(
    trained: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = trained.to(torch.bfloat16)[:, : trained.shape[1] // GROUP * GROUP].contiguous()
    multiplied = list[int]()

    def count(weight: torch.Tensor, group: int, out: torch.Tensor | None = None) -> torch.Tensor:
        multiplied.append(weight.numel() // group)
        return rotate(weight, group, out)

    monkeypatch.setattr(exact_rotation, "rotate", count)
    rotate_exactly(stored, stored.to(torch.float32), Workspace(stored.device))
    assert sum(multiplied) < max(65, stored.numel() // GROUP / 2)


def test_weights_that_are_not_finite_stay_so() -> None:
    stored = make("normal", (64, 1024))
    stored[3, 5], stored[9, 700] = torch.nan, torch.inf
    result = rotate_exactly(stored, stored.to(torch.float32), Workspace(stored.device))
    assert not bool(result[3, :256].isfinite().any())
    assert not bool(result[9, 512:768].isfinite().any())
    assert bool(result[:3].isfinite().all())
