from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels.eager.rotation import hadamard
from calibrated_rounding.quant.errors import RecipeError
from calibrated_rounding.quant.formats.rotation import GROUP_SIZES, largest_group, rotate
from comfy_kitchen.tensor.int8_utils import _build_hadamard, _rotate_weight


@pytest.mark.parametrize("size", GROUP_SIZES)
def test_hadamard_matrix_is_comfy_kitchens(size: int) -> None:
    matrix = hadamard(size, torch.device("cpu"))
    assert torch.equal(matrix, _build_hadamard(size))
    assert torch.equal(matrix @ matrix, torch.eye(size))
    assert torch.equal(matrix.abs(), torch.full((size, size), size**-0.5))


@pytest.mark.parametrize("size", GROUP_SIZES)
def test_rotation_matches_comfy_kitchen_bits(size: int, trained: torch.Tensor) -> None:
    assert torch.equal(rotate(trained, size), _rotate_weight(trained, _build_hadamard(size), size))


def test_rotation_spreads_an_outlier() -> None:
    weight = torch.zeros(1, 256)
    weight[0, 17] = 16.0
    assert torch.equal(rotate(weight, 256).abs(), torch.ones(1, 256))


def test_group_choice() -> None:
    assert [largest_group(width, 256) for width in (512, 192, 48, 40)] == [256, 64, 16, None]
    assert largest_group(512, 64) == 64
    with pytest.raises(RecipeError, match="32"):
        rotate(torch.zeros(2, 64), 32)
