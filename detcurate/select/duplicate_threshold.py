"""The similarity of a near-duplicate, found from the pool itself instead of guessed.

Images of different sequences are not duplicates of each other, and planted copies of the pool's own images are. The
threshold is the smallest similarity at which hardly any image has a neighbour that is known not to be a duplicate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detcurate.errors import SelectionError
from detcurate.select.filters import HASH_BITS
from detcurate.select.neighbours import unit_rows

FALSE_NEIGHBOURS = 0.001
"""The largest share of images that may have a false neighbour."""

EMBEDDING_STEP, HASH_STEP = 1e-6, 1 / HASH_BITS
"""How much a threshold lies above the highest similarity that it excludes: above rounding, and one bit of a hash."""

_MOST_QUERIES = 10_000
_NUM_PAIRS = 20_000
_QUERY_BLOCK, _BLOCK = 1024, 16_384


@dataclass(frozen=True)
class DuplicateThreshold:
    """A similarity threshold, and how well it tells duplicates from other images.

    Args:
        similarity: In (0, 1], from which on two images are near-duplicates.
        false_neighbours: In [0, 1], the share of images with a false neighbour at or above it.
        recall: In [0, 1], the share of the planted copies that are at or above it; None without copies.
        recall_by_kind: The same for each kind of copy.
        compared_with: ``"other sequences"`` or, for a pool without sequences, ``"all images"``.
        num_images: The images that were compared with the pool.
        num_copies: The planted copies.
    """

    similarity: float
    false_neighbours: float
    recall: float | None
    recall_by_kind: Mapping[str, float]
    compared_with: str
    num_images: int
    num_copies: int

    @property
    def text(self) -> str:
        """The threshold in one line of a log."""
        found = "unknown" if self.recall is None else f"{self.recall:.1%} of {self.num_copies:,} planted copies"
        return (
            f"near-duplicates from similarity {self.similarity:.6g} (auto): {self.false_neighbours:.2%} of "
            f"{self.num_images:,} images with a false neighbour among {self.compared_with}, recall {found}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-serialisable values."""
        return {**asdict(self), "recall_by_kind": dict(self.recall_by_kind)}


def hash_units(hashes: np.ndarray) -> np.ndarray:
    """Return perceptual hashes as (n, 64) float32 rows of length 1, so that equal bits can be counted by products.

    Args:
        hashes: (n,) uint64.
    """
    bits = np.unpackbits(np.ascontiguousarray(hashes, np.uint64).view(np.uint8).reshape(-1, 8), axis=1)
    units: np.ndarray = (bits.astype(np.float32) * 2 - 1) / np.float32(math.sqrt(HASH_BITS))
    return units


def hash_similarity(cosines: np.ndarray) -> np.ndarray:
    """Return the share of equal bits, in [0, 1], of the cosines of :func:`hash_units`."""
    return np.asarray(np.round((1 + cosines.astype(np.float64)) / 2 * HASH_BITS) / HASH_BITS)


def duplicate_threshold(
    *,
    embeddings: np.ndarray | None = None,
    hashes: np.ndarray | None = None,
    sequences: np.ndarray | None = None,
    copies: Mapping[str, np.ndarray] | None = None,
    originals: np.ndarray | None = None,
    similarity: float | None = None,
    seed: int = 0,
) -> DuplicateThreshold:
    """Find the smallest similarity at which at most 0.1 % of the images have a false neighbour.

    A false neighbour of an image is an image of another sequence. With fewer than two sequences every other image
    counts, except those more similar than half of the least changed kind of planted copy: these are taken for
    duplicates, so the threshold never exceeds that similarity. Of more than 10,000 images a sample is compared with the
    whole pool.

    Args:
        embeddings: (n, D) floating, finite; similarity is the cosine.
        hashes: (n,) uint64 of :func:`detcurate.select.filters.difference_hash`, used without embeddings; similarity is
            the share of equal bits.
        sequences: (n,) int64, the number of each image's sequence, -1 for none; or None.
        copies: Kind -> (s, D) embeddings or (s,) hashes of copies of the images ``originals``.
        originals: (s,) int64 rows of the pool.
        similarity: A fixed threshold to describe instead of the one that is found.
        seed: Seed of the sample.

    Raises:
        SelectionError: Neither embeddings nor hashes are given, or a pool without two sequences has no copies.

    Example:
        >>> rows = np.array([[1.0, 0.0], [1.0, 0.01], [0.8, 0.6], [0.8, 0.61]])
        >>> found = duplicate_threshold(embeddings=rows, sequences=np.array([0, 0, 1, 1]))
        >>> round(found.similarity, 3), found.false_neighbours  # cos of rows 1 and 2
        (0.806, 0.0)
    """
    values, is_hash = hashes if embeddings is None else embeddings, embeddings is None
    if values is None:
        raise SelectionError(
            "CURATE.SELECT.DUPLICATE_SIMILARITY: auto needs embeddings or hashes of the pool (got neither)"
        )
    units = _units(values, is_hash)
    of_copies = {
        kind: _similarity(np.einsum("sd,sd->s", _units(copied, is_hash), units[originals]), is_hash)
        for kind, copied in (copies or {}).items()
    }
    every = np.concatenate(list(of_copies.values())) if of_copies else np.zeros(0)
    groups, known, ceiling, compared_with = sequences, np.arange(len(units)), math.inf, "other sequences"
    if groups is None or len(np.unique(groups[groups >= 0])) < 2:
        if not len(every):
            raise SelectionError(
                "CURATE.SELECT.DUPLICATE_SIMILARITY: auto needs sequences in the annotation file, or planted copies "
                "(got neither). Predict the pool again with auto, or set a number."
            )
        groups, compared_with = known, "all images"
        ceiling = max(float(np.median(values)) for values in of_copies.values())
    else:
        known = np.flatnonzero(groups >= 0)
    queries = known
    if len(known) > _MOST_QUERIES:
        queries = np.sort(np.random.default_rng(seed).choice(known, _MOST_QUERIES, replace=False))
    nearest = nearest_similarity(units, groups, queries, pool=known, ceiling=ceiling, is_hash=is_hash)
    if similarity is None:
        similarity = smallest_threshold(nearest, step=HASH_STEP if is_hash else EMBEDDING_STEP)
    return DuplicateThreshold(
        similarity=similarity,
        false_neighbours=float((nearest >= similarity).mean()) if len(nearest) else 0.0,
        recall=float((every >= similarity).mean()) if len(every) else None,
        recall_by_kind={kind: float((values >= similarity).mean()) for kind, values in of_copies.items()},
        compared_with=compared_with,
        num_images=len(queries),
        num_copies=len(every),
    )


def nearest_similarity(
    units: np.ndarray,
    groups: np.ndarray,
    queries: np.ndarray,
    *,
    pool: np.ndarray,
    ceiling: float = math.inf,
    is_hash: bool = False,
) -> np.ndarray:
    """Return the similarity of each query with its nearest image of another group.

    Args:
        units: (n, D) float32 rows of length 1, or zero.
        groups: (n,) int64.
        queries: (q,) int64 rows.
        pool: (p,) int64 rows that the queries are compared with.
        ceiling: Pairs at or above this similarity are ignored.
        is_hash: Whether the rows are those of :func:`hash_units`.

    Returns:
        (q,) float64; -1 for a query without such an image.
    """
    nearest = np.full(len(queries), -1.0)
    for start in range(0, len(queries), _QUERY_BLOCK):
        rows = queries[start : start + _QUERY_BLOCK]
        for first in range(0, len(pool), _BLOCK):
            others = pool[first : first + _BLOCK]
            found = _similarity(units[rows] @ units[others].T, is_hash)
            found[(groups[rows][:, None] == groups[others]) | (found >= ceiling)] = -1.0
            part = nearest[start : start + _QUERY_BLOCK]
            np.maximum(part, found.max(axis=1, initial=-1.0), out=part)
    return nearest


def smallest_threshold(nearest: np.ndarray, *, step: float, share: float = FALSE_NEIGHBOURS) -> float:
    """Return the smallest threshold, a step above a similarity, that at most a share of the values reach.

    Args:
        nearest: (q,) float64, the similarity of each image with its nearest false neighbour.
        step: Above 0.
        share: In [0, 1).

    Returns:
        In [step, 1]; 1 also where more than the share of the values are 1.

    Example:
        >>> smallest_threshold(np.array([0.2, 0.9, 0.5, 0.7]), step=0.01, share=0.25)
        0.71
    """
    allowed = math.floor(share * len(nearest) + 1e-9)
    if allowed >= len(nearest):
        return step
    highest = float(np.partition(nearest, len(nearest) - 1 - allowed)[len(nearest) - 1 - allowed])
    return min(max(highest + step, step), 1.0)


def pair_similarity(
    quantiles: tuple[float, ...], *, embeddings: np.ndarray | None, hashes: np.ndarray | None, seed: int = 0
) -> tuple[float, ...]:
    """Return quantiles of the similarity of two random images, by embedding or, without those, by hash.

    Args:
        quantiles: In [0, 1].
        embeddings: (n, D) floating, finite.
        hashes: (n,) uint64.
        seed: Seed of the pairs.

    Returns:
        One similarity per quantile; an empty tuple for fewer than two images.

    Example:
        >>> pair_similarity((0.5,), embeddings=None, hashes=np.array([0, 0, 0], np.uint64))
        (1.0,)
    """
    values = hashes if embeddings is None else embeddings
    if values is None or len(values) < 2:
        return ()
    draw, is_hash = np.random.default_rng(seed), embeddings is None
    first = draw.integers(0, len(values), _NUM_PAIRS)
    second = (first + draw.integers(1, len(values), _NUM_PAIRS)) % len(values)  # another image, each equally likely
    found = np.einsum("pd,pd->p", _units(values[first], is_hash), _units(values[second], is_hash))
    return tuple(float(value) for value in np.quantile(_similarity(found, is_hash), quantiles))


def _units(values: np.ndarray, is_hash: bool) -> np.ndarray:
    return hash_units(values) if is_hash else unit_rows(values)


def _similarity(cosines: np.ndarray, is_hash: bool) -> np.ndarray:
    return hash_similarity(cosines) if is_hash else np.asarray(cosines, np.float64)
