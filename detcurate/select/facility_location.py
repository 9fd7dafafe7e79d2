"""Facility location: a subset that represents every candidate by a near member."""

from __future__ import annotations

import numpy as np

from detcurate.select.k_center import raise_closeness
from detcurate.select.kernels.diversity import lazy_greedy
from detcurate.select.neighbours import nearest_rows

_NUM_NEIGHBOURS = 32


def facility_location(
    units: np.ndarray,
    *,
    num_chosen: int,
    taken: np.ndarray | None = None,
    num_neighbours: int = _NUM_NEIGHBOURS,
    num_threads: int = 1,
) -> np.ndarray:
    """Choose rows greedily to maximise the sum, over all rows, of the cosine with the nearest chosen one.

    Only the cosines of each row with its nearest neighbours count, negative ones as 0; neighbours both ways, the row
    itself among them. Greedy choice is within 1 - 1/e of the best one; that of a row whose gain was computed long ago
    is computed again before it is chosen, and of no other (Minoux 1978).

    Args:
        units: (n, D) float32 rows of length 1; of equal gains the first is chosen.
        num_chosen: in [0, n].
        taken: (t, D) float32 rows that are chosen already, or None.
        num_neighbours: at least 1, the row itself included.
        num_threads: of no effect on the result.

    Returns:
        (num_chosen,) int64 rows, in order of choice.

    Source:
        Krause and Golovin, "Submodular function maximization", 2014, section 1.2.

    Example:
        >>> facility_location(np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32), num_chosen=1).tolist()
        [1]
    """
    n = len(units)
    if num_chosen == 0:
        return np.zeros(0, np.int64)
    coverage = np.zeros(n, np.float32)
    if taken is not None and len(taken):
        raise_closeness(coverage, units, taken, num_threads)
    starts, covered, similarities = _graph(units, num_neighbours, num_threads)
    chosen: np.ndarray = lazy_greedy(starts, covered, similarities, coverage.astype(np.float64), num_chosen)
    return chosen


def _graph(units: np.ndarray, num_neighbours: int, num_threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the symmetric graph of nearest neighbours by row: starts, neighbours and their cosines."""
    n = len(units)
    cosines, neighbours = nearest_rows(units, units, k=num_neighbours, num_threads=num_threads)
    own = np.repeat(np.arange(n), neighbours.shape[1])
    others, weights = neighbours.reshape(-1), np.maximum(cosines.reshape(-1), 0)
    found = (others >= 0) & (others != own)
    own, others, weights = own[found], others[found], weights[found]
    pairs = np.concatenate((own * n + others, others * n + own, np.arange(n) * (n + 1)))
    keys, first = np.unique(pairs, return_index=True)
    values = np.concatenate((weights, weights, np.ones(n, np.float32)))[first]
    starts = np.searchsorted(keys, np.arange(n + 1) * n)
    return starts, (keys % n).astype(np.int32), values
