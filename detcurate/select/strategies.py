"""Strategies: the order in which candidates are selected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from detcurate.errors import SelectionError
from detcurate.select.kernels import farthest_first, lazy_greedy
from detcurate.select.neighbours import nearest_rows, unit_rows

_FEWEST, _MOST = 256, 4096  # candidates examined per round
_CHUNK = 2048
_CHOSEN = np.float32(4.0)  # above any cosine


def k_center(
    units: np.ndarray, *, num_centers: int, taken: np.ndarray | None = None, num_threads: int = 1
) -> np.ndarray:
    """Choose centers greedily, each the row that is farthest from all earlier centers.

    The result equals that of the plain greedy algorithm, at the speed of matrix products. Each round takes the farthest
    b rows and chooses among them while the farthest is farther than every other row was at the start of the round; this
    is exact because distances only decrease. One matrix product then updates all rows. Rows with distances that differ
    by less than the float32 resolution may change places.

    Args:
        units: (n, D) float32 rows of length 1; of equally far rows the first is chosen.
        num_centers: In [0, n].
        taken: (t, D) float32 rows that are centers already. With None the first row is the first center.
        num_threads: Number of threads; no effect on the result.

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
        num_threads: Number of threads; no effect on the result.
    """

    def work(start: int) -> None:
        part = slice(start, start + _CHUNK)
        for first in range(0, len(centers), _MOST):
            products = units[part] @ centers[first : first + _MOST].T
            np.maximum(closeness[part], products.max(axis=1), out=closeness[part])

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, range(0, len(units), _CHUNK)))


def _farthest(closeness: np.ndarray, batch: int) -> tuple[np.ndarray, np.float32]:
    """Return the rows farther than all others, ascending, and a lower bound of the closeness of the others."""
    if batch >= len(closeness):
        return np.arange(len(closeness)), _CHOSEN
    bound = np.partition(closeness, batch)[batch]
    rows = np.flatnonzero(closeness < bound)
    if len(rows):
        return rows, bound
    # All of the farthest rows are equally far: take the first of them.
    return np.flatnonzero(closeness == bound)[:batch], np.nextafter(bound, _CHOSEN)


_NUM_NEIGHBOURS = 32


def facility_location(
    units: np.ndarray,
    *,
    num_chosen: int,
    taken: np.ndarray | None = None,
    num_neighbours: int = _NUM_NEIGHBOURS,
    num_threads: int = 1,
) -> np.ndarray:
    """Choose rows greedily to maximise the sum, over all rows, of the cosine with the nearest chosen row.

    Only cosines with the nearest neighbours of either row count, the row itself included; negative ones count as 0.
    The greedy choice reaches at least 1 - 1/e of the optimum. Gains are recomputed lazily (Minoux 1978).

    Args:
        units: (n, D) float32 rows of length 1; of equal gains the first is chosen.
        num_chosen: In [0, n].
        taken: (t, D) float32 rows that are chosen already, or None.
        num_neighbours: At least 1, the row itself included.
        num_threads: Number of threads; no effect on the result.

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
    """Return the symmetric graph of nearest neighbours: the start of each row, neighbours, and their cosines."""
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


@dataclass(frozen=True)
class Candidates:
    """The images that a strategy orders, best first.

    Args:
        image_score: (n,) float64, descending; equal scores by image_id.
        costs: (n,) int64, at least 0.
        draw: (n,) float64 in [0, 1), uniform random numbers. They depend on the image, the seed and the strategy, not
            on the other candidates.
        remaining: The remaining budget.
        threshold: The threshold of the strategy ``threshold``.
        num_strata: The number of strata of the strategy ``strata``.
        boxes_per_class: (n, C) integers, or None if unknown.
        embeddings: (n, D) floating, or None.
        taken_embeddings: (t, D) floating of the images selected before, or None.
        num_threads: Number of threads; no effect on the result.
    """

    image_score: np.ndarray
    costs: np.ndarray
    draw: np.ndarray
    remaining: int
    threshold: float = 0.0
    num_strata: int = 50
    boxes_per_class: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    taken_embeddings: np.ndarray | None = None
    num_threads: int = 1

    def __len__(self) -> int:
        return len(self.image_score)

    @property
    def max_count(self) -> int:
        """The largest number of images that fit the remaining budget in any order."""
        return int(np.searchsorted(np.cumsum(np.sort(self.costs)), self.remaining, side="right"))


Strategy = Callable[[Candidates], np.ndarray]
"""Function of n candidates that returns (m,) rows in the order of selection; other rows are not selected."""


def top_n(candidates: Candidates) -> np.ndarray:
    """Order by score, the highest first."""
    return np.arange(len(candidates))


def threshold(candidates: Candidates) -> np.ndarray:
    """Order by score, without images below the threshold."""
    return np.flatnonzero(candidates.image_score >= candidates.threshold)


def random(candidates: Candidates) -> np.ndarray:
    """Order at random; a smaller budget selects a prefix of a larger one, so that fractions are comparable."""
    return np.argsort(candidates.draw, kind="stable")


def strata(candidates: Candidates) -> np.ndarray:
    """Take one random image of each stratum of the score range in turn until all are used.

    The strata have equal width, not equal size, so that easy, medium and hard images are selected equally often. An
    exhausted stratum leaves its share to the others, as in the paper. The label-noise filter takes the place of the
    paper's cut of the hardest images.

    Source:
        Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates", ICLR 2023, algorithm 1.
    """
    if not len(candidates):
        return np.zeros(0, np.int64)
    low, high = candidates.image_score.min(), candidates.image_score.max()
    width = (high - low) / candidates.num_strata
    position = (high - candidates.image_score) / width if width > 0 else np.zeros(len(candidates))
    stratum = np.minimum(position.astype(np.int64), candidates.num_strata - 1)
    order = np.lexsort((candidates.draw, stratum))
    _, starts, counts = np.unique(stratum[order], return_index=True, return_counts=True)
    turn = np.arange(len(candidates)) - np.repeat(starts, counts)
    return order[np.lexsort((stratum[order], turn))]


def stratified_random(candidates: Candidates) -> np.ndarray:
    """Order at random so that every prefix has the images of each class in the pool's proportions.

    An image belongs to its rarest class (by boxes among the candidates); images without boxes form their own group.

    Raises:
        SelectionError: ``boxes_per_class`` is None.
    """
    counts = candidates.boxes_per_class
    if counts is None:
        raise SelectionError("strategy stratified_random needs boxes_per_class (got None)")
    rarity = np.where(counts > 0, counts.sum(axis=0, dtype=np.int64), np.iinfo(np.int64).max)
    group = np.where(counts.any(axis=1), rarity.argmin(axis=1), counts.shape[1])
    order = np.lexsort((candidates.draw, group))
    _, starts, sizes = np.unique(group[order], return_index=True, return_counts=True)
    turn = np.arange(len(candidates)) - np.repeat(starts, sizes)
    # The images of a group divide [0, 1) into equal parts. A random offset within the parts, the same for the whole
    # group, keeps small groups from always being early or late.
    offset = np.repeat(candidates.draw[order[starts + sizes // 2]], sizes) if len(order) else np.zeros(0)
    place = (turn + offset) / np.repeat(sizes, sizes)
    return order[np.lexsort((candidates.draw[order], place))]


def k_center_order(candidates: Candidates) -> np.ndarray:
    """Order by :func:`k_center`; images selected before are centers already."""
    units, taken = _units(candidates, "k_center")
    return k_center(units, num_centers=candidates.max_count, taken=taken, num_threads=candidates.num_threads)


def facility_location_order(candidates: Candidates) -> np.ndarray:
    """Order by :func:`facility_location`; images selected before count as chosen."""
    units, taken = _units(candidates, "facility_location")
    return facility_location(units, num_chosen=candidates.max_count, taken=taken, num_threads=candidates.num_threads)


def _units(candidates: Candidates, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    if candidates.embeddings is None:
        raise SelectionError(
            f"CURATE.SELECT.STRATEGY {name} needs embeddings (got none). Predict the pool with "
            "CURATE.PREDICT.EMBEDDINGS True."
        )
    taken = candidates.taken_embeddings
    return unit_rows(candidates.embeddings), None if taken is None else unit_rows(taken)


STRATEGIES: Mapping[str, Strategy] = {
    "top_n": top_n,
    "threshold": threshold,
    "strata": strata,
    "random": random,
    "stratified_random": stratified_random,
    "k_center": k_center_order,
    "facility_location": facility_location_order,
}

BY_EMBEDDING = ("k_center", "facility_location")
"""The strategies that need embeddings and consider only the best images by score."""

EXCLUDED: Mapping[str, str] = {"threshold": "below_threshold"}
"""Strategy -> the reason of images that it excludes; other strategies exclude none."""
