"""Pictures side by side with their difference."""

from __future__ import annotations

import pytest
import torch
from calibrated_rounding.nodes.compare.pictures import (
    LABEL_HEIGHT,
    MAX_AMPLIFICATION,
    MIN_WIDTH,
    choose_amplification,
    draw_side_by_side,
)

LABELS = ("reference", "candidate", "difference")


def pictures(width: int = 64, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 48, width, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("difference", "factor"),
    [(1.0, 1), (0.6, 1), (0.5, 2), (0.3, 2), (0.25, 4), (0.011, 64), (1e-9, MAX_AMPLIFICATION), (0.0, 1)],
)
def test_the_largest_difference_just_fits(difference: float, factor: int) -> None:
    reference = torch.zeros(1, 4, 4, 3)
    candidate = reference.clone()
    candidate[0, 1, 2, 0] = difference
    assert choose_amplification(reference, candidate) == choose_amplification(candidate, reference) == factor


def test_three_panels_under_their_labels() -> None:
    reference = pictures(MIN_WIDTH)
    candidate = (reference + 0.01).clamp(max=1)
    sheet = draw_side_by_side(reference, candidate, LABELS, 16)
    assert sheet.shape == (2, 48 + LABEL_HEIGHT, 3 * MIN_WIDTH, 3)
    left, middle, right = sheet[:, LABEL_HEIGHT:].split(MIN_WIDTH, dim=2)
    assert torch.equal(left, reference)
    assert torch.equal(middle, candidate)
    assert torch.allclose(right, 16 * (candidate - reference))
    for label in sheet[0, :LABEL_HEIGHT].split(MIN_WIDTH, dim=1):
        assert label.max() > 0.5, "a label must be readable"


def test_small_pictures_are_enlarged_by_a_whole_number() -> None:
    small = pictures(100)
    sheet = draw_side_by_side(small, small, LABELS, 1)
    assert sheet.shape == (2, 3 * 48 + LABEL_HEIGHT, 3 * 300, 3)
    assert torch.equal(sheet[:, LABEL_HEIGHT::3, 0:300:3], small)


def test_a_broken_picture_shows_as_all_different() -> None:
    reference = pictures()
    broken = torch.full_like(reference, torch.nan)
    sheet = draw_side_by_side(reference, broken, LABELS, choose_amplification(reference, broken))
    assert (sheet[:, LABEL_HEIGHT:, 2 * MIN_WIDTH :] == 1).all()
