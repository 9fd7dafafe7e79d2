"""The selection: label-noise filter, thinning, minimum quotas, and a strategy's order within budget and quotas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from detcurate.errors import SelectionError
from detcurate.select.filters import close_frames, hash_duplicates, near_duplicates, noisy_rows, require_sequences
from detcurate.select.limits import Budget, BudgetTracker, Quota, image_budget
from detcurate.select.selection_log import LogWriter, SelectionLog
from detcurate.select.strategies import BY_EMBEDDING, EXCLUDED, STRATEGIES, Candidates
from detcurate.structures import ImageScores

NOISE_FILTERS = {"off": "", "drop": "label_noise", "queue": "relabel_queue"}
"""Mode of the label-noise filter -> the reason of images that it removes."""

LIKE_LABELLED = "like_labelled"
"""The reason of an image that is a near-duplicate of a labelled image outside the pool."""


@dataclass(frozen=True)
class PoolColumns:
    """Columns of the pool's images beside their scores. A step that needs a missing column raises an error.

    Args:
        label_error_score: (I,) float64, at least 0; higher = a label is more likely wrong.
        embeddings: (I, D) floating.
        hashes: (I,) uint64 of :func:`detcurate.select.filters.difference_hash`.
        sequences: (I,) int64, the number of each image's sequence, -1 for none.
        frame_index: (I,) int64, -1 for none.
        boxes_per_class: (I, C) integers.
        labelled: (L, D) embeddings or, if the pool has none, (L,) hashes of L labelled images outside the pool; their
            near-duplicates are removed.
    """

    label_error_score: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    hashes: np.ndarray | None = None
    sequences: np.ndarray | None = None
    frame_index: np.ndarray | None = None
    boxes_per_class: np.ndarray | None = None
    labelled: np.ndarray | None = None

    def require_rows(self, num_images: int) -> None:
        """Raise ``SelectionError`` if a column has another length than the pool."""
        for field in fields(self):
            column = getattr(self, field.name)
            if column is not None and field.name != "labelled" and len(column) != num_images:
                raise SelectionError(
                    f"{field.name} must have one row for each of the pool's {num_images} images (got {len(column)})"
                )


def select(
    scores: ImageScores,
    *,
    budget: Budget | int,
    strategy: str = "top_n",
    seed: int = 0,
    columns: PoolColumns | None = None,
    noise_filter: str = "off",
    noise_filter_quantile: float = 0.95,
    duplicate_similarity: float = 0.0,
    sequence_gap: int = 0,
    minimums: Sequence[Quota] = (),
    maximums: Sequence[Quota] = (),
    threshold: float = 0.0,
    num_strata: int = 50,
    oversampling: float = 4.0,
    held: Sequence[tuple[np.ndarray, str]] = (),
    num_threads: int = 1,
) -> SelectionLog:
    """Select images of a scored pool; the same input and seed give the same selection.

    The steps, in order: images selected before (``held``), the label-noise filter, near-duplicates, the sequence gap,
    the minimum quotas (each with the best-scored images that count for it), for strategies by embedding the restriction
    to the best by score, and the strategy's order until the budget is spent. Maximum quotas apply to minimum quotas and
    order alike. Ties are broken by image_id. The log has one reason for every image.

    Args:
        scores: I images.
        budget: A budget, or a number of images in [1, I].
        strategy: A name in ``STRATEGIES``.
        seed: 0 or more; affects only random strategies.
        columns: Further columns of the pool.
        noise_filter: A name in ``NOISE_FILTERS``.
        noise_filter_quantile: In [0, 1]; images above this quantile of the label-error score are removed.
        duplicate_similarity: In (0, 1], the smallest similarity of near-duplicates, by embedding or, without those, by
            hash; 0 keeps near-duplicates.
        sequence_gap: The smallest distance in frames of two images of a sequence; 0 keeps all.
        minimums: Minimum quotas of the subset.
        maximums: Maximum quotas of the subset.
        threshold: The threshold of the strategy ``threshold``.
        num_strata: The number of strata of the strategy ``strata``.
        oversampling: At least 1; strategies by embedding consider the best images up to so many times the budget.
        held: image_ids selected before, in order, with their reason; such as those of earlier rounds of a search. No
            step removes them. They count for budget and quotas, and replace their near-duplicates.
        num_threads: Number of threads; no effect on the result.

    Returns:
        The log; its ``selection`` has the selected images in order, each with its reason.

    Raises:
        SelectionError: A name or number is out of range, a column is missing, a minimum quota cannot be met, no image
            remains, or held images are not in the pool or exceed the budget.

    Example:
        >>> scores = ImageScores(np.array([3, 5, 8, 9]), np.array([0.2, 0.7, 0.9, 0.7]), {})
        >>> log = select(scores, budget=3)
        >>> log.selection.image_ids.tolist(), log.counts(taken=False)
        ([8, 5, 9], {'budget': 1})
    """
    columns, num_images = columns or PoolColumns(), len(scores)
    _validate(strategy, seed, noise_filter, oversampling, num_strata)
    columns.require_rows(num_images)
    tracker = BudgetTracker(_budget(budget, num_images), maximums)
    log = LogWriter(scores.image_ids, np.lexsort((scores.image_ids, -scores.image_score)))
    for images, reason in held:
        tracker.hold(_rows_of(images, scores.image_ids), log, reason)
    _apply_noise_filter(log, columns, noise_filter, noise_filter_quantile)
    _thin_duplicates(log, columns, duplicate_similarity, num_threads)
    _thin_sequences(log, columns, sequence_gap)
    for minimum in minimums:
        tracker.meet(minimum, log)
    if strategy in BY_EMBEDDING:
        log.remove(tracker.beyond(log.candidates, oversampling), "outside_best")
    # Seeded by the strategy too, so that a random baseline with the same seed is independent of ``strata``.
    draw = np.random.default_rng([seed, *strategy.encode()]).random(num_images)
    while tracker.remaining > 0 and len(rows := log.candidates):
        order = STRATEGIES[strategy](
            Candidates(
                image_score=scores.image_score[rows],
                costs=tracker.costs[rows],
                draw=draw[rows],
                remaining=tracker.remaining,
                threshold=threshold,
                num_strata=num_strata,
                boxes_per_class=_take(columns.boxes_per_class, rows),
                embeddings=_take(columns.embeddings, rows) if strategy in BY_EMBEDDING else None,
                taken_embeddings=_take(columns.embeddings, log.taken) if strategy in BY_EMBEDDING else None,
                num_threads=num_threads,
            )
        )
        if strategy in EXCLUDED:
            log.remove(np.delete(rows, order), EXCLUDED[strategy])
        # Loop: maximum quotas may have removed images of an order that was only as long as the budget.
        if not len(order) or tracker.spend(rows[order], log, strategy):
            break
    return _finished(log, tracker)


def _finished(log: LogWriter, tracker: BudgetTracker) -> SelectionLog:
    finished = log.finish("budget")
    if not len(finished.taken):
        why = ", ".join(f"{reason} {count}" for reason, count in finished.counts(taken=False).items())
        raise SelectionError(
            f"no image is left with a budget of {tracker.budget.text} (removed: {why}). Raise the budget, or relax the "
            "step that removes most."
        )
    return finished


def _validate(strategy: str, seed: int, noise_filter: str, oversampling: float, num_strata: int) -> None:
    for name, value, known in (("strategy", strategy, STRATEGIES), ("noise_filter", noise_filter, NOISE_FILTERS)):
        if value not in known:
            raise SelectionError(f"{name} must be one of {', '.join(known)} (got {value!r})")
    for name, number, least in (("seed", seed, 0), ("oversampling", oversampling, 1), ("num_strata", num_strata, 1)):
        if not number >= least:
            raise SelectionError(f"{name} must be at least {least} (got {number})")


def _budget(budget: Budget | int, num_images: int) -> Budget:
    if isinstance(budget, int):
        if not 1 <= budget <= num_images:
            raise SelectionError(
                f"budget must be in [1, {num_images}], the number of images of the pool (got {budget})"
            )
        return image_budget(num_images, count=budget)
    if len(budget.costs) != num_images:
        raise SelectionError(
            f"budget must have a cost for each of the pool's {num_images} images (got {len(budget.costs)})"
        )
    return budget


def _apply_noise_filter(log: LogWriter, columns: PoolColumns, noise_filter: str, quantile: float) -> None:
    if noise_filter == "off":
        return
    if columns.label_error_score is None:
        raise SelectionError(
            f"CURATE.SELECT.NOISE_FILTER {noise_filter} needs label-error scores (got none). Score a labelled pool in "
            "the mode cluster, or turn the filter off."
        )
    noisy = noisy_rows(columns.label_error_score, quantile=quantile)
    log.remove(noisy[np.isin(noisy, log.taken, invert=True)], NOISE_FILTERS[noise_filter])


def _thin_duplicates(log: LogWriter, columns: PoolColumns, similarity: float, num_threads: int) -> None:
    if similarity == 0:
        return
    values = columns.hashes if columns.embeddings is None else columns.embeddings
    if values is None:
        raise SelectionError(f"duplicate_similarity {similarity} needs embeddings or hashes (got neither)")
    rows = np.concatenate((log.taken, log.candidates))
    labelled = values[:0] if columns.labelled is None else columns.labelled
    every = np.concatenate((labelled, values[rows])) if len(labelled) else values[rows]
    num_kept = len(labelled) + len(log.taken)
    if columns.embeddings is None:
        keeper = hash_duplicates(every, similarity=similarity, num_kept=num_kept)
    else:
        keeper = near_duplicates(every, similarity=similarity, num_kept=num_kept, num_threads=num_threads)
    keeper = keeper[len(labelled) :]
    log.remove(rows[(keeper >= 0) & (keeper < len(labelled))], LIKE_LABELLED)
    _replace_rows(log, rows, keeper - len(labelled), "near_duplicate")


def _thin_sequences(log: LogWriter, columns: PoolColumns, gap: int) -> None:
    if gap == 0:
        return
    rows = np.concatenate((log.taken, log.candidates))
    known = (columns.sequences, columns.frame_index)
    require_sequences(np.zeros(0) if columns.sequences is None else columns.sequences, gap=gap)
    sequences, frame_index = (np.full(len(rows), -1) if column is None else column[rows] for column in known)
    _replace_rows(log, rows, close_frames(sequences, frame_index, gap=gap, num_kept=len(log.taken)), "sequence_gap")


def _replace_rows(log: LogWriter, rows: np.ndarray, keeper: np.ndarray, reason: str) -> None:
    gone = keeper >= 0
    log.remove(rows[gone], reason, replaced_by=rows[keeper[gone]])


def _rows_of(image_ids: np.ndarray, pool: np.ndarray) -> np.ndarray:
    rows = np.searchsorted(pool, image_ids)
    known = (rows < len(pool)) & (pool[np.minimum(rows, len(pool) - 1)] == image_ids)
    if not known.all():
        raise SelectionError(
            f"images selected before must be in the pool (got image_id {image_ids[~known][0]}, one of "
            f"{int((~known).sum())} that are not)"
        )
    return rows


def _take(column: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if column is None else column[rows]
