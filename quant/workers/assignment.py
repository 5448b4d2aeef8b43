"""Which rank takes which job."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def assign(costs: Sequence[float], count: int, fixed: float = 0.0) -> list[list[int]]:
    """Divide jobs among workers, longest first, each to the worker with the least work so far.

    The result depends on the costs alone. No worker has more than the mean and the largest job together (R. L. Graham,
    "Bounds on multiprocessing timing anomalies", 1969), unless ``fixed`` alone is more.

    Args:
        costs: of the jobs, in any unit.
        count: of the workers.
        fixed: work that the first worker has beside its jobs.

    Returns:
        The indices of each worker's jobs, ascending.
    """
    loads = [(0.0 if worker else fixed, worker) for worker in range(count)]
    heapq.heapify(loads)
    shares: list[list[int]] = [[] for _ in range(count)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, worker = heapq.heappop(loads)
        shares[worker].append(index)
        heapq.heappush(loads, (load + costs[index], worker))
    return [sorted(share) for share in shares]
