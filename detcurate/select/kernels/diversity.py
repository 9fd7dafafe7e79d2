"""The inner loops of k-center and of facility location."""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit

_CHOSEN = np.float32(4.0)  # above any cosine


@njit(cache=True, nogil=True)
def farthest_first(similarities, closeness, ceiling, most):
    """Choose the row of lowest closeness again and again, as long as it is below the ceiling.

    Args:
        similarities: (b, b) float32.
        closeness: (b,) float32, the similarity of each row to the nearest center; changed in place.
        ceiling: float32.
        most: how many to choose at most.

    Returns:
        (c,) int64 rows in order of choice; of equal ones the first.
    """
    chosen = np.empty(min(most, len(closeness)), np.int64)
    count = 0
    while count < len(chosen):
        row = np.argmin(closeness)
        if closeness[row] >= ceiling:
            break
        chosen[count] = row
        count += 1
        for other in range(len(closeness)):
            closeness[other] = max(closeness[other], similarities[row, other])
        closeness[row] = _CHOSEN
    return chosen[:count]


@njit(cache=True, nogil=True)
def lazy_greedy(starts, covered, similarities, coverage, most):
    """Choose the row that adds most coverage, again and again; a gain only falls, so that old ones are upper bounds.

    Args:
        starts: (n + 1,) int64, where the rows that each row covers begin.
        covered: (P,) int32 rows.
        similarities: (P,) float32, at least 0.
        coverage: (n,) float64, the similarity of each row to the nearest chosen one; changed in place.
        most: how many to choose at most.

    Returns:
        (c,) int64 rows in order of choice; of equal gains the first.
    """
    heap = [(-_gain(starts, covered, similarities, coverage, row), row) for row in range(len(starts) - 1)]
    heapq.heapify(heap)
    chosen = np.empty(most, np.int64)
    count = 0
    while count < most and heap:
        row = heap[0][1]
        gain = _gain(starts, covered, similarities, coverage, row)
        if -gain > heap[0][0]:
            heapq.heapreplace(heap, (-gain, row))
            continue
        heapq.heappop(heap)
        chosen[count] = row
        count += 1
        for at in range(starts[row], starts[row + 1]):
            coverage[covered[at]] = max(coverage[covered[at]], similarities[at])
    return chosen[:count]


@njit(cache=True, nogil=True)
def _gain(starts, covered, similarities, coverage, row):
    gain = 0.0
    for at in range(starts[row], starts[row + 1]):
        gain += max(0.0, similarities[at] - coverage[covered[at]])
    return gain
