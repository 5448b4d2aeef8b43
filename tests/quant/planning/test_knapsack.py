from __future__ import annotations

from itertools import pairwise, product

import pytest
from calibrated_rounding.quant.planning.knapsack import Knapsack, Option
from hypothesis import given
from hypothesis import strategies as st

OPTIONS = st.builds(Option, st.integers(0, 60), st.integers(0, 1000).map(float))
LAYERS = st.lists(st.lists(OPTIONS, min_size=1, max_size=3), min_size=1, max_size=5)


def totals(knapsack: Knapsack) -> list[Option]:
    """The totals of every choice there is."""
    return [knapsack.total(choice) for choice in product(*(range(len(options)) for options in knapsack.layers))]


@given(layers=LAYERS, share=st.floats(0, 1))
def test_within_a_size_nothing_costs_less(layers: list[list[Option]], share: float) -> None:
    knapsack = Knapsack(layers)
    every = totals(knapsack)
    limit = knapsack.smallest + int(share * (max(total.nbytes for total in every) - knapsack.smallest))
    found = knapsack.total(knapsack.within_size(limit))
    assert found.nbytes <= limit
    assert found.cost == min(total.cost for total in every if total.nbytes <= limit)


@given(layers=LAYERS, share=st.floats(0, 1))
def test_within_a_cost_nothing_is_smaller(layers: list[list[Option]], share: float) -> None:
    knapsack = Knapsack(layers)
    every = totals(knapsack)
    least, most = min(total.cost for total in every), max(total.cost for total in every)
    limit = least + share * (most - least)
    found = knapsack.total(knapsack.within_cost(limit))
    tolerated = limit * (1 + 1e-6)
    assert found.cost <= tolerated
    at_best, at_most = (min(total.nbytes for total in every if total.cost <= bound) for bound in (tolerated, limit))
    assert at_best <= found.nbytes <= at_most


@given(layers=LAYERS)
def test_the_cheapest_is(layers: list[list[Option]]) -> None:
    knapsack = Knapsack(layers)
    assert knapsack.total(knapsack.cheapest).cost == min(total.cost for total in totals(knapsack))


@given(layers=LAYERS)
def test_along_the_curve_more_bytes_never_cost_more(layers: list[list[Option]]) -> None:
    curve = Knapsack(layers).curve(9)
    assert curve[0].nbytes == Knapsack(layers).smallest
    assert all(a.nbytes < b.nbytes and a.cost >= b.cost for a, b in pairwise(curve))


def test_real_model_sizes_stay_within_limit() -> None:
    """Sizes far beyond the number of units, without a common divisor."""
    layers = [[Option(10_000_019 + 97 * i, 1.0 + i), Option(20_000_003 + 89 * i, 0.0)] for i in range(300)]
    knapsack = Knapsack(layers)
    limit = 4_321_987_654
    found = knapsack.total(knapsack.within_size(limit))
    one_layer, rounding = 10_000_000, 300 * 10_000_000 // 2**15 * 150
    assert limit - one_layer - rounding < found.nbytes <= limit


def test_unreachable_limits_are_errors() -> None:
    knapsack = Knapsack([[Option(10, 5.0), Option(20, 1.0)]])
    with pytest.raises(ValueError, match="smallest"):
        knapsack.within_size(9)
    with pytest.raises(ValueError, match="least"):
        knapsack.within_cost(0.5)


def test_sizes_on_curve_are_met_exactly() -> None:
    layers = [[Option(10_000_019 + 97 * i, 1.0 + i), Option(20_000_003 + 89 * i, 0.0)] for i in range(60)]
    knapsack = Knapsack(layers)
    for point in knapsack.curve(33):
        found = knapsack.total(knapsack.within_size(point.nbytes))
        assert found.nbytes <= point.nbytes and found.cost <= point.cost
