"""Filters before the ranking: near-duplicates, frames close in time, and images with probable label errors.

The thinning functions take their rows *best first* and return, for each row, the better row that replaces it. Only kept
rows replace others, so that a chain of small differences does not remove a whole drive: any two kept rows are
dissimilar, and every removed row is similar to a kept one. The first ``num_kept`` rows are always kept, however similar
to each other, and replace others.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from detcurate.errors import SelectionError
from detcurate.select.kernels import keep_apart, keep_far_from_better, keep_unlike_hashes
from detcurate.select.neighbours import KeptRows, unit_rows

HASH_BITS = 64
_BANDS = 4
_BLOCK = 1024


def near_duplicates(
    embeddings: np.ndarray, *, similarity: float, num_kept: int = 0, num_threads: int = 1
) -> np.ndarray:
    """Find near-duplicates of better rows by the cosine of their embeddings.

    Exact up to 20,000 rows; above, pairs can be missed, see :class:`detcurate.select.neighbours.KeptRows`. A row of
    zeros has no near-duplicate.

    Args:
        embeddings: (n, D) floating, finite, best row first.
        similarity: In (0, 1], the smallest cosine of two near-duplicates.
        num_kept: In [0, n], the number of leading rows that are kept in any case.
        num_threads: Number of threads; no effect on the result.

    Returns:
        (n,) int64: the best kept row that each is a near-duplicate of, -1 for a kept row.

    Raises:
        SelectionError: The similarity is out of range, or an embedding is not finite.

    Example:
        >>> near_duplicates(np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]), similarity=0.95).tolist()
        [-1, -1, 0]
    """
    _require_similarity(similarity)
    if not np.isfinite(embeddings).all():
        raise SelectionError("embeddings must be finite (got NaN or infinity). Predict the pool again.")
    units = unit_rows(embeddings)
    keeper = np.full(len(units), -1, np.int64)
    kept = KeptRows(units, num_threads)
    for first in range(0, len(units), _BLOCK):
        block = units[first : first + _BLOCK]
        starts, better = kept.near(block, similarity)
        near = block @ block.T >= np.float32(similarity)
        keep_far_from_better(keeper, first, starts, better, near, num_kept)
        kept.keep(first + np.flatnonzero(keeper[first : first + _BLOCK] < 0))
    return keeper


def hash_duplicates(hashes: np.ndarray, *, similarity: float, num_kept: int = 0) -> np.ndarray:
    """Find near-duplicates of better rows by the share of equal bits of their perceptual hashes.

    Exact: two hashes that differ in r bits differ in at most r // 4 bits of at least one of their four quarters, so
    only rows with such a quarter are compared (multi-index hashing, Norouzi et al. 2012).

    Args:
        hashes: (n,) uint64 of :func:`difference_hash`, best row first.
        similarity: In (0, 1], the smallest share of equal bits of two near-duplicates.
        num_kept: In [0, n], the number of leading rows that are kept in any case.

    Returns:
        As :func:`near_duplicates`.

    Raises:
        SelectionError: The similarity is out of range.

    Example:
        >>> hash_duplicates(np.array([0b1111, 0, 0b0111], np.uint64), similarity=0.98).tolist()
        [-1, -1, 0]
    """
    _require_similarity(similarity)
    band_bits = HASH_BITS // _BANDS
    most_bits = int(round((1 - similarity) * HASH_BITS, 9))
    flips = np.arange(2**band_bits, dtype=np.uint64)
    ones = np.unpackbits(flips.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
    values = [(hashes >> np.uint64(band * band_bits)) & np.uint64(2**band_bits - 1) for band in range(_BANDS)]
    starts = np.stack([np.searchsorted(np.sort(column), np.arange(2**band_bits + 1)) for column in values])
    by_band = np.stack([np.argsort(column, kind="stable") for column in values])
    keeper: np.ndarray = keep_unlike_hashes(
        hashes, by_band, starts, flips[ones <= most_bits // _BANDS], band_bits, most_bits, num_kept
    )
    return keeper


def difference_hash(gray: np.ndarray) -> int:
    """Return the 64-bit difference hash of an image: whether each of 8x9 patches is brighter than its left neighbour.

    Args:
        gray: (8, 9) numbers, the gray image resized by averaging areas.

    Returns:
        An integer in [0, 2**64). A uniform image gives 0.

    Source:
        N. Krawetz, "Kind of Like That", 2013 (dHash).
    """
    bits = np.packbits((gray[:, 1:] > gray[:, :-1]).reshape(-1))
    return int.from_bytes(bits.tobytes(), "big")


def require_sequences(sequences: np.ndarray, *, gap: int) -> None:
    """Raise ``SelectionError`` if no image has a sequence.

    Args:
        sequences: (I,) int64, -1 for none.
        gap: The requested gap in frames.
    """
    if not (sequences >= 0).any():
        raise SelectionError(
            f"CURATE.SELECT.SEQUENCE_GAP: a gap of {gap} frames needs images with `sequence` (got none). "
            "Add `sequence` and `frame_index` to the image records, or set the gap to 0."
        )


def close_frames(sequences: np.ndarray, frame_index: np.ndarray, *, gap: int, num_kept: int = 0) -> np.ndarray:
    """Find rows that lie less than ``gap`` frames from a better row of the same sequence.

    Images without a sequence are kept. Frames may be in any order and may repeat (several cameras).

    Args:
        sequences: (n,) int64, the number of each image's sequence, -1 for none; best row first.
        frame_index: (n,) int64, -1 for none.
        gap: At least 1; with 2 no two consecutive frames are kept.
        num_kept: In [0, n], the number of leading rows that are kept in any case.

    Returns:
        (n,) int64: the best kept row that each is close to, -1 for a kept row.

    Raises:
        SelectionError: The gap is below 1, or an image with a sequence has no frame index.

    Example:
        >>> close_frames(np.array([0, 0, 0, 1]), np.array([7, 8, 9, 8]), gap=2).tolist()
        [-1, 0, -1, -1]
    """
    if gap < 1:
        raise SelectionError(f"gap must be at least 1 frame (got {gap})")
    unplaced = (sequences >= 0) & (frame_index < 0)
    if unplaced.any():
        raise SelectionError(
            f"CURATE.SELECT.SEQUENCE_GAP: images with a sequence need `frame_index` (missing in {int(unplaced.sum())} "
            "of them). Add it to the image records, or set the gap to 0."
        )
    order = np.lexsort((np.arange(len(sequences)), frame_index, sequences))
    keeper: np.ndarray = keep_apart(order, sequences, frame_index, gap, num_kept)
    return keeper


def _require_similarity(similarity: float) -> None:
    if not 0 < similarity <= 1:
        raise SelectionError(f"duplicate_similarity must be in (0, 1] (got {similarity})")


def noisy_rows(label_error_score: np.ndarray, *, quantile: float) -> np.ndarray:
    """Return the rows above a quantile of the label-error score, the highest score first; ties by row.

    Their number is the share of the pool above the quantile, rounded half up. Images with a score of 0 are never
    returned, so a clean pool loses none.

    Args:
        label_error_score: (I,) float64, at least 0; higher = a label is more likely wrong.
        quantile: In [0, 1]; 0.95 returns the top 5 %, 1 none.

    Returns:
        (g,) int64 rows.

    Raises:
        SelectionError: The quantile is out of range, or a score is negative or not finite.

    Example:
        >>> noisy_rows(np.array([0.1, 0.9, 0.0, 0.9]), quantile=0.5).tolist()
        [1, 3]
    """
    if not 0 <= quantile <= 1:
        raise SelectionError(f"noise_filter_quantile must be in [0, 1] (got {quantile}). 0.95 removes the top 5 %.")
    if not (label_error_score >= 0).all() or not np.isfinite(label_error_score).all():
        raise SelectionError("label_error_score must be finite and at least 0. Score the pool again.")
    share = (1 - Decimal(repr(float(quantile)))) * len(label_error_score)
    order = np.lexsort((np.arange(len(label_error_score)), -label_error_score))[
        : int(share.to_integral_value(ROUND_HALF_UP))
    ]
    return order[label_error_score[order] > 0]
