from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels.gpu import product
from calibrated_rounding.kernels.tiles import Tile
from triton.runtime import OutOfResources

TILE = Tile(rows=128, columns=256, depth=128, warps=8, stages=4)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_FITTING", {})


class Kernel:
    """Runs with ``most`` stages or fewer, and notes what it was started with."""

    def __init__(self, most: int) -> None:
        self.most, self.started = most, []

    def __call__(self, *arguments: object, num_stages: int, **others: object) -> None:
        self.started.append(num_stages)
        if num_stages > self.most:
            raise OutOfResources(300_000, 232_448, "shared memory")


def test_stages_that_fit_are_remembered() -> None:
    kernel = Kernel(most=2)
    for _ in range(2):
        product.launch(kernel, (), {"ROWS": 128}, TILE, torch.bfloat16)
    assert kernel.started == [4, 3, 2, 2]
    product.launch(kernel, (), {"ROWS": 64}, TILE, torch.bfloat16)
    assert kernel.started[4:] == [4, 3, 2]


def test_stages_of_wide_results_do_not_limit_others() -> None:
    product.launch(Kernel(most=2), (), {"ROWS": 128}, TILE, torch.float32)
    kernel = Kernel(most=4)
    product.launch(kernel, (), {"ROWS": 128}, TILE, torch.bfloat16)
    assert kernel.started == [4]


def test_tile_without_fitting_stage_raises() -> None:
    with pytest.raises(OutOfResources):
        product.launch(Kernel(most=0), (), {}, TILE, torch.bfloat16)
