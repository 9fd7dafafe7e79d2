"""Strategies: in which order the candidates are bought."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from detcurate.errors import SelectionError
from detcurate.select.facility_location import facility_location
from detcurate.select.k_center import k_center
from detcurate.select.neighbours import unit_rows


@dataclass(frozen=True)
class Candidates:
    """What a strategy orders: the images that are left, best first.

    Args:
        image_score: (n,) float64, falling; equal ones by image_id.
        costs: (n,) int64, at least 0.
        draw: (n,) float64 in [0, 1), uniform: what chance decides. It depends on the image, the seed and the
            strategy, not on who else is left.
        room: what may be spent.
        threshold: of the strategy ``threshold``.
        num_strata: of the strategy ``strata``.
        boxes_per_class: (n, C) integers, or None where they are not known.
        embeddings: (n, D) floating, or None.
        taken_embeddings: (t, D) floating of what was taken before, or None.
        num_threads: of no effect on the result.
    """

    image_score: np.ndarray
    costs: np.ndarray
    draw: np.ndarray
    room: int
    threshold: float = 0.0
    num_strata: int = 50
    boxes_per_class: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    taken_embeddings: np.ndarray | None = None
    num_threads: int = 1

    def __len__(self) -> int:
        return len(self.image_score)

    @property
    def most(self) -> int:
        """How many of the cheapest fit the room: no order buys more."""
        return int(np.searchsorted(np.cumsum(np.sort(self.costs)), self.room, side="right"))


Strategy = Callable[[Candidates], np.ndarray]
"""From n candidates to the (m,) rows in the order in which they are bought; those left out are not to be bought."""


def top_n(candidates: Candidates) -> np.ndarray:
    """Order by score, the highest first."""
    return np.arange(len(candidates))


def threshold(candidates: Candidates) -> np.ndarray:
    """Order as :func:`top_n`, and leave out what scores below the threshold."""
    return np.flatnonzero(candidates.image_score >= candidates.threshold)


def random(candidates: Candidates) -> np.ndarray:
    """Order at random: a smaller budget buys the head of what a larger one buys, so that fractions can be compared."""
    return np.argsort(candidates.draw, kind="stable")


def strata(candidates: Candidates) -> np.ndarray:
    """Take one image of each stratum of the score range in turn, a random one, until all are used up.

    The strata are equally wide, not equally full, so that easy, middling and hard images are bought alike: a stratum
    that runs out leaves its share to the others, as in the paper. The paper's cut of the hardest images is the noise
    guard's.

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
    """Order at random so that each head holds the images of each class in the pool's proportions.

    An image counts as one of its rarest class (by boxes among the candidates), an empty one as one of none.

    Raises:
        SelectionError: The boxes of each class are not known.
    """
    counts = candidates.boxes_per_class
    if counts is None:
        raise SelectionError("the strategy stratified_random must be given boxes_per_class, got none")
    rarity = np.where(counts > 0, counts.sum(axis=0, dtype=np.int64), np.iinfo(np.int64).max)
    group = np.where(counts.any(axis=1), rarity.argmin(axis=1), counts.shape[1])
    order = np.lexsort((candidates.draw, group))
    _, starts, sizes = np.unique(group[order], return_index=True, return_counts=True)
    turn = np.arange(len(candidates)) - np.repeat(starts, sizes)
    # The members of a group cut [0, 1) into equal parts; a random one of them says where in its part each stands, so
    # that small groups are not always early or late.
    offset = np.repeat(candidates.draw[order[starts + sizes // 2]], sizes) if len(order) else np.zeros(0)
    place = (turn + offset) / np.repeat(sizes, sizes)
    return order[np.lexsort((candidates.draw[order], place))]


def k_center_order(candidates: Candidates) -> np.ndarray:
    """Order by :func:`detcurate.select.k_center.k_center`; what was taken before are centers already."""
    units, taken = _units(candidates, "k_center")
    return k_center(units, num_centers=candidates.most, taken=taken, num_threads=candidates.num_threads)


def facility_location_order(candidates: Candidates) -> np.ndarray:
    """Order by :func:`detcurate.select.facility_location.facility_location`; what was taken before counts."""
    units, taken = _units(candidates, "facility_location")
    return facility_location(units, num_chosen=candidates.most, taken=taken, num_threads=candidates.num_threads)


def _units(candidates: Candidates, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    if candidates.embeddings is None:
        raise SelectionError(
            f"the strategy {name} must be given embeddings, got none; predict the pool with "
            "CURATE.PREDICT.EMBEDDINGS True"
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
"""The strategies that want embeddings, and only look at the best by score."""

LEFT_OUT: Mapping[str, str] = {"threshold": "below_threshold"}
"""Strategy -> the reason of an image that it leaves out; of the others none is left out but for the budget."""
