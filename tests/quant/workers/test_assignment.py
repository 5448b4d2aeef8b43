from __future__ import annotations

import math

import pytest
from calibrated_rounding.quant.workers.assignment import assign
from calibrated_rounding.quant.workers.ranks import Ranks
from calibrated_rounding.quant.workers.workers import Workers
from hypothesis import given
from hypothesis import strategies as st

COSTS = st.lists(st.floats(0, 1e15), max_size=60)
COUNTS = st.integers(1, 9)


@given(COSTS, COUNTS)
def test_each_job_is_assigned_once(costs: list[float], count: int) -> None:
    shares = assign(costs, count)
    assert len(shares) == count
    assert sorted(index for share in shares for index in share) == list(range(len(costs)))


@given(COSTS, COUNTS, st.floats(0, 1e15))
def test_no_worker_exceeds_the_bound(costs: list[float], count: int, fixed: float) -> None:
    loads = [math.fsum(costs[index] for index in share) for share in assign(costs, count, fixed)]
    loads[0] += fixed
    bound = (math.fsum(costs) + fixed) / count + max(costs, default=0) * (1 - 1 / count)
    assert max(loads) <= max(bound, fixed) * (1 + 1e-12)


@given(COSTS, COUNTS)
def test_shares_keep_the_order(costs: list[float], count: int) -> None:
    assert all(share == sorted(share) for share in assign(costs, count))


@pytest.mark.parametrize(("count", "expected"), [(1, 12.0), (2, 6.0), (3, 5.0)])
def test_longest_jobs_go_first(count: int, expected: float) -> None:
    costs = [1.0, 1.0, 5.0, 2.0, 3.0]
    assert max(sum(costs[index] for index in share) for share in assign(costs, count)) == expected


class Second(Ranks):
    rank, size = 1, 2


def test_ranks_select_complementary_jobs() -> None:
    costs = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 1.0}
    assert Workers().select_own(costs) == ["a", "b", "c", "d"]
    assert Workers(ranks=Second()).select_own(costs) == ["b", "c"]
