"""A selection: guard, thinning, floors, and an order that is bought until the budget is spent, under caps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from detcurate.errors import SelectionError
from detcurate.select.filters import close_frames, hash_duplicates, near_duplicates, noisy_rows, require_sequences
from detcurate.select.limits import Budget, BudgetTracker, Quota, image_budget
from detcurate.select.selection_log import LogWriter, SelectionLog
from detcurate.select.strategies import BY_EMBEDDING, LEFT_OUT, STRATEGIES, Candidates
from detcurate.structures import ImageScores

NOISE_FILTERS = {"off": "", "drop": "label_noise", "queue": "relabel_queue"}
"""What the noise guard does -> the reason of an image that it removes."""

LIKE_LABELLED = "like_labelled"
"""The reason of an image that is a near-duplicate of one that is labelled already, outside of the pool."""


@dataclass(frozen=True)
class PoolColumns:
    """What is known of the pool's images beside their scores; a step that wants what is None says so.

    Args:
        label_error_score: (I,) float64, at least 0; higher = a label is more likely wrong.
        embeddings: (I, D) floating.
        hashes: (I,) uint64 of :func:`detcurate.select.filters.difference_hash`.
        sequences: (I,) int64, the number of each image's sequence, -1 for none.
        frame_index: (I,) int64, -1 for none.
        boxes_per_class: (I, C) integers.
        labelled: Of L images outside of the pool that are labelled already, (L, D) embeddings or, where the pool has
            none, (L,) hashes: what is a near-duplicate of one of them leaves.
    """

    label_error_score: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    hashes: np.ndarray | None = None
    sequences: np.ndarray | None = None
    frame_index: np.ndarray | None = None
    boxes_per_class: np.ndarray | None = None
    labelled: np.ndarray | None = None

    def require_rows(self, num_images: int) -> None:
        """Raise ``SelectionError`` when a column has another length than the pool."""
        for field in fields(self):
            column = getattr(self, field.name)
            if column is not None and field.name != "labelled" and len(column) != num_images:
                raise SelectionError(
                    f"{field.name} must have one row for each of the pool's {num_images} images, got {len(column)}; "
                    "give those of the same pool"
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
    """Choose images of a scored pool; the same input and seed give the same selection.

    In this order: what is held already; the noise guard; near-duplicates; the sequence gap; the floors, each with the
    best-scored images that hold it; of the strategies by embedding the best by score; the strategy's order, until the
    budget is spent. Caps hold for floors and order alike. Ties are broken by image_id, and the log has one reason for
    every image.

    Args:
        scores: I images.
        budget: A budget, or a number of images in [1, I].
        strategy: a name in ``STRATEGIES``.
        seed: 0 or more; of no effect on strategies without chance.
        columns: What the steps want to know beside the scores.
        noise_filter: a name in ``NOISE_FILTERS``.
        noise_filter_quantile: in [0, 1]; images above this quantile of suspicion leave.
        duplicate_similarity: in (0, 1], by embedding or, without those, by hash; 0 keeps near-duplicates.
        sequence_gap: frames between two images of a sequence, at least; 0 keeps all.
        minimums: What the subset holds at least.
        maximums: What it holds at most.
        threshold: of the strategy ``threshold``.
        num_strata: of the strategy ``strata``.
        oversampling: at least 1; the strategies by embedding look at the best images that cost so many budgets.
        held: image_ids that are kept whatever the steps say, in order, with the reason that they get: what a round of
            a search has bought before. They count for budget, floors and caps, and others give way to them.
        num_threads: of no effect on the result.

    Returns:
        The log; its ``selection`` holds what was chosen, in order, each with its reason.

    Raises:
        SelectionError: A name or number is out of range, a step lacks its column, a floor cannot be met, no image is
            left, or what is held is not of the pool or exceeds the budget.

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
    # Of the strategy too, so that a random baseline with the same seed is another draw than that of the strata.
    draw = np.random.default_rng([seed, *strategy.encode()]).random(num_images)
    while tracker.room > 0 and len(rows := log.candidates):
        order = STRATEGIES[strategy](
            Candidates(
                image_score=scores.image_score[rows],
                costs=tracker.costs[rows],
                draw=draw[rows],
                room=tracker.room,
                threshold=threshold,
                num_strata=num_strata,
                boxes_per_class=_take(columns.boxes_per_class, rows),
                embeddings=_take(columns.embeddings, rows) if strategy in BY_EMBEDDING else None,
                taken_embeddings=_take(columns.embeddings, log.taken) if strategy in BY_EMBEDDING else None,
                num_threads=num_threads,
            )
        )
        if strategy in LEFT_OUT:
            log.remove(np.delete(rows, order), LEFT_OUT[strategy])
        # An order that ends early ends again later when caps have turned down some of it.
        if not len(order) or tracker.spend(rows[order], log, strategy):
            break
    return _finished(log, tracker)


def _finished(log: LogWriter, tracker: BudgetTracker) -> SelectionLog:
    finished = log.finish("budget")
    if not len(finished.taken):
        why = ", ".join(f"{reason} {count}" for reason, count in finished.counts(taken=False).items())
        raise SelectionError(
            f"a selection must hold at least one image, got none with a budget of {tracker.budget.text} "
            f"(removed: {why}); raise the budget or loosen the step that removes most"
        )
    return finished


def _validate(strategy: str, seed: int, noise_filter: str, oversampling: float, num_strata: int) -> None:
    for name, value, known in (("strategy", strategy, STRATEGIES), ("noise_filter", noise_filter, NOISE_FILTERS)):
        if value not in known:
            raise SelectionError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    for name, number, least in (("seed", seed, 0), ("oversampling", oversampling, 1), ("num_strata", num_strata, 1)):
        if not number >= least:
            raise SelectionError(f"{name} must be at least {least}, got {number}")


def _budget(budget: Budget | int, num_images: int) -> Budget:
    if isinstance(budget, int):
        if not 1 <= budget <= num_images:
            raise SelectionError(f"budget must be in [1, {num_images}], the images of the pool, got {budget}")
        return image_budget(num_images, count=budget)
    if len(budget.costs) != num_images:
        raise SelectionError(
            f"budget must have a cost for each of the pool's {num_images} images, got {len(budget.costs)}"
        )
    return budget


def _apply_noise_filter(log: LogWriter, columns: PoolColumns, noise_filter: str, quantile: float) -> None:
    if noise_filter == "off":
        return
    if columns.label_error_score is None:
        raise SelectionError(
            "the noise filter must be given label-error scores, got scores without any; "
            "score a labelled pool, or turn it off"
        )
    noisy = noisy_rows(columns.label_error_score, quantile=quantile)
    log.remove(noisy[np.isin(noisy, log.taken, invert=True)], NOISE_FILTERS[noise_filter])


def _thin_duplicates(log: LogWriter, columns: PoolColumns, similarity: float, num_threads: int) -> None:
    if similarity == 0:
        return
    values = columns.hashes if columns.embeddings is None else columns.embeddings
    if values is None:
        raise SelectionError(
            f"embeddings or hashes must be given to find near-duplicates of similarity {similarity}, got neither"
        )
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
    _give_way(log, rows, keeper - len(labelled), "near_duplicate")


def _thin_sequences(log: LogWriter, columns: PoolColumns, gap: int) -> None:
    if gap == 0:
        return
    rows = np.concatenate((log.taken, log.candidates))
    known = (columns.sequences, columns.frame_index)
    require_sequences(np.zeros(0) if columns.sequences is None else columns.sequences, gap=gap)
    sequences, frame_index = (np.full(len(rows), -1) if column is None else column[rows] for column in known)
    _give_way(log, rows, close_frames(sequences, frame_index, gap=gap, num_kept=len(log.taken)), "sequence_gap")


def _give_way(log: LogWriter, rows: np.ndarray, keeper: np.ndarray, reason: str) -> None:
    gone = keeper >= 0
    log.remove(rows[gone], reason, replaced_by=rows[keeper[gone]])


def _rows_of(image_ids: np.ndarray, pool: np.ndarray) -> np.ndarray:
    rows = np.searchsorted(pool, image_ids)
    known = (rows < len(pool)) & (pool[np.minimum(rows, len(pool) - 1)] == image_ids)
    if not known.all():
        raise SelectionError(
            f"what is held must be images of the pool, got {image_ids[~known][0]} and {int((~known).sum()) - 1} others "
            "that are not; give those of the same pool"
        )
    return rows


def _take(column: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if column is None else column[rows]
