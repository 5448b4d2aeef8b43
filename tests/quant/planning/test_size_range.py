"""The sizes that auto can reach, known from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, RecipeError, quantize_state_dict
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.engine import plan_run
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.planning.builder import make_plan
from calibrated_rounding.quant.planning.size_range import find_size_range
from calibrated_rounding.quant.run import Run
from torch import Tensor

FORMATS = ("int8_row", "w4a8")


def recipe(**settings: Any) -> Recipe:
    return Recipe(format="auto", formats=FORMATS, **settings)


class Unread(StateDictSource):
    """Shapes without weights."""

    def read(self, name: str) -> Tensor:
        raise AssertionError(f"{name} is read")


def test_single_formats_lie_in_range(digits: Mapping[str, Tensor]) -> None:
    source = StateDictSource(digits)
    reachable = find_size_range(make_plan(source.tensors, recipe()), recipe())
    assert reachable is not None
    sizes = [quantize_state_dict(digits, Recipe(format=name))[1].totals.bytes_after for name in FORMATS]
    assert (reachable.smallest, reachable.largest) == (min(sizes), max(sizes))
    assert find_size_range(make_plan(source.tensors, Recipe()), Recipe()) is None


def test_targets_and_inputs_widen_range(digits: Mapping[str, Tensor]) -> None:
    tensors = StateDictSource(digits).tensors
    plain = find_size_range(make_plan(tensors, recipe()), recipe())
    target = recipe(target_share=0.6)
    floating = find_size_range(make_plan(tensors, target), target)
    opened = find_size_range(make_plan(tensors, target), target, lambda _: True)
    assert plain is not None and floating is not None and opened is not None
    assert opened.smallest < floating.smallest == plain.smallest < plain.largest < floating.largest == opened.largest
    assert opened.largest == sum(tensor.nbytes for tensor in digits.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_share": 0.2}, "target_share 0.2 is .* cannot take it below"),
        ({"target_gb": 0.001}, "target_gb 0.001 is 0.001 GB, .* below"),
        ({"target_gb": 8.0}, "target_gb 8 leaves every layer as it is; ask for a smaller size"),
    ],
)
def test_impossible_sizes_are_refused_before_measuring(
    digits: Mapping[str, Tensor], settings: dict[str, float], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        plan_run(Unread(digits), Run(recipe=recipe(**settings)))


def test_fewer_than_eight_rows_are_not_used() -> None:
    assert not InputStatistics(rows=torch.zeros(7, 4)).has_rows
    assert InputStatistics(rows=torch.zeros(8, 4)).has_rows
