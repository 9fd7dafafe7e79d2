"""k-center: a subset near which every candidate has a member."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from detcurate.select.kernels.diversity import farthest_first

_FEWEST, _MOST = 256, 4096  # candidates looked at a round
_CHUNK = 2048
_CHOSEN = np.float32(4.0)  # above any cosine


def k_center(
    units: np.ndarray, *, num_centers: int, taken: np.ndarray | None = None, num_threads: int = 1
) -> np.ndarray:
    """Choose centers greedily, each the row that is farthest from all centers before it.

    The result is that of the plain greedy algorithm, at the speed of matrix products: a round takes the farthest b
    rows, chooses among them as long as the farthest of them is farther than any row outside was when the round began
    (which is exact, for distances only fall), and then brings all rows up to date with one product. Two rows whose
    distances differ by less than float32 resolves may change places.

    Args:
        units: (n, D) float32 rows of length 1; of equally far ones the first is chosen.
        num_centers: in [0, n].
        taken: (t, D) float32 rows that are centers already, or None: the first row is then the first center.
        num_threads: chunks of rows at once; of no effect on the result.

    Returns:
        (num_centers,) int64 rows, in order of choice.

    Source:
        Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985; as a coreset Sener and Savarese,
        ICLR 2018.

    Example:
        >>> k_center(np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32), num_centers=2).tolist()
        [0, 2]
    """
    if num_centers == 0:
        return np.zeros(0, np.int64)
    closeness = np.full(len(units), -2, np.float32)  # below any cosine
    chosen: list[np.ndarray] = []
    if taken is not None and len(taken):
        raise_closeness(closeness, units, taken, num_threads)
        missing, batch = num_centers, _FEWEST
    else:
        chosen.append(np.zeros(1, np.int64))
        raise_closeness(closeness, units, units[:1], num_threads)
        closeness[0] = _CHOSEN
        missing, batch = num_centers - 1, _FEWEST
    while missing > 0:
        rows, ceiling = _farthest(closeness, batch)
        among = units[rows]
        centers = rows[farthest_first(among @ among.T, closeness[rows], ceiling, missing)]
        chosen.append(centers)
        missing -= len(centers)
        if missing > 0:
            raise_closeness(closeness, units, units[centers], num_threads)
            closeness[centers] = _CHOSEN
        batch = int(np.clip(4 * len(centers), _FEWEST, _MOST))
    return np.concatenate(chosen)


def raise_closeness(closeness: np.ndarray, units: np.ndarray, centers: np.ndarray, num_threads: int = 1) -> None:
    """Raise each row's closeness, in place, to its highest cosine with any of the centers.

    Args:
        closeness: (n,) float32.
        units: (n, D) float32.
        centers: (c, D) float32, c at least 1.
        num_threads: chunks of rows at once.
    """

    def work(start: int) -> None:
        part = slice(start, start + _CHUNK)
        for first in range(0, len(centers), _MOST):
            products = units[part] @ centers[first : first + _MOST].T
            np.maximum(closeness[part], products.max(axis=1), out=closeness[part])

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, range(0, len(units), _CHUNK)))


def _farthest(closeness: np.ndarray, batch: int) -> tuple[np.ndarray, np.float32]:
    """Return the rows farther than all others, ascending, and the closeness that those others have at least."""
    if batch >= len(closeness):
        return np.arange(len(closeness)), _CHOSEN
    bound = np.partition(closeness, batch)[batch]
    rows = np.flatnonzero(closeness < bound)
    if len(rows):
        return rows, bound
    # All of the farthest are equally far: the first of them, which come first outside the batch too.
    return np.flatnonzero(closeness == bound)[:batch], np.nextafter(bound, _CHOSEN)
