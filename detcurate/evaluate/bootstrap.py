"""Confidence intervals: average precision on resampled images, and Student's t over training seeds."""

from __future__ import annotations

import numpy as np
from numba import njit

from detcurate.errors import PredictionError
from detcurate.evaluate.coco_eval import MatchTable

_RECALLS = np.linspace(0.0, 1.0, 101)
_AP50, _AP75 = 0, 5  # among COCO's ten IoU thresholds
_AT_ONCE = 100  # draws per block: NumPy returns 64-bit counts


def image_weights(num_images: int, num_replicates: int, *, seed: int = 0) -> np.ndarray:
    """Draw the number of times that each image is in each resampled evaluation set.

    Args:
        num_images: I, at least 1.
        num_replicates: B.
        seed: Seed of the draw. Use one seed for all compared models, so that they share the resampled sets.

    Returns:
        (B, I) int32; each row sums to I.

    Source:
        Efron 1979, the bootstrap.
    """
    chances, draws = np.full(num_images, 1.0 / num_images), np.random.default_rng(seed)
    weights = np.empty((num_replicates, num_images), np.int32)
    for start in range(0, num_replicates, _AT_ONCE):
        block = weights[start : start + _AT_ONCE]
        block[:] = draws.multinomial(num_images, chances, size=len(block))
    return weights


def weighted_ap(table: MatchTable, weights: np.ndarray) -> np.ndarray:
    """Compute COCO's AP with a weight for each image.

    With all weights 1 it equals the AP of ``pycocotools``. Classes without a box in the sample are excluded; a sample
    without any box gives NaN.

    Args:
        table: The matches of one model.
        weights: (B, I) integers, 0 or more.

    Returns:
        (B,) float64 in [0, 100].

    Source:
        ``pycocotools.cocoeval.COCOeval.accumulate``: precision made monotone, read at 101 recalls, averaged over
        classes and IoU thresholds.
    """
    return _mean(weighted_ap_per_class(table, weights), (1, 2))


def weighted_figures(table: MatchTable, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute COCO's figures and the AP of each class with a weight for each image.

    Args:
        table: The matches of one model.
        weights: (B, I) integers, 0 or more.

    Returns:
        ``AP``, ``AP50``, ``AP75`` and those of ``table.by_size``, (B,) float64 in [0, 100] each; ``per_class``, (B, C).
        NaN where the sample has no box that counts for a figure.
    """
    parts = weighted_ap_per_class(table, weights)
    figures = {"AP": _mean(parts, (1, 2)), "AP50": _mean(parts[:, :, _AP50], 1), "AP75": _mean(parts[:, :, _AP75], 1)}
    sizes = {name: weighted_ap(part, weights) for name, part in table.by_size.items()}
    return {**figures, **sizes, "per_class": _mean(parts, 2)}


def weighted_ap_per_class(table: MatchTable, weights: np.ndarray) -> np.ndarray:
    """Compute the AP of each class at each IoU threshold with a weight for each image.

    Args:
        table: The matches of one model.
        weights: (B, I) integers, 0 or more.

    Returns:
        (B, C, T) float64 in [0, 100], NaN for a class without a box in the sample.
    """
    if weights.ndim != 2 or weights.shape[1] != len(table.num_labels):
        raise PredictionError(f"weights must have shape (B, {len(table.num_labels)}) (got {weights.shape})")
    labelled, classes = np.nonzero(table.num_labels)
    figures: np.ndarray = _weighted_ap(
        np.ascontiguousarray(weights, np.int32),
        (table.image_index, table.class_starts),
        _events(table),
        (labelled, classes, table.num_labels[labelled, classes]),
        _RECALLS,
    )
    return figures


def paired_interval(
    first: np.ndarray, second: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the mean difference of two arms, over training seeds and images.

    Each replicate of the images gets its own draw of seeds, and both arms share seeds and images in a draw. With few
    seeds the interval is too narrow; report Student's interval over the seeds beside it.

    Args:
        first: (B, S) AP of one arm on B resampled sets, one column per seed.
        second: (B, S) AP of the other arm, with the same seeds and sets.
        level: Confidence level, in (0, 1).
        seed: Seed of the draw of training seeds.

    Returns:
        The two ends; NaN where no replicate has a difference.

    Raises:
        PredictionError: The two differ in shape.
    """
    if first.shape != second.shape:
        raise PredictionError(f"both arms need the same replicates and seeds (got {first.shape}, {second.shape})")
    replicates, num_seeds = first.shape
    drawn = np.random.default_rng(seed).integers(0, num_seeds, (replicates, num_seeds))
    differences = np.take_along_axis(first - second, drawn, axis=1).mean(axis=1)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return float("nan"), float("nan")
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def student_t(degrees_of_freedom: int, *, level: float = 0.95) -> float:
    """Return the half width of a two-sided interval by Student's t, in standard errors.

    With two seeds it is 12.7, not 2: an interval of two standard errors would be wrong three times in ten.

    Args:
        degrees_of_freedom: At least 1; the number of seeds less 1.
        level: Confidence level, in (0, 1).

    Example:
        >>> round(student_t(1), 3), round(student_t(9), 3)
        (12.706, 2.262)
    """
    from scipy.stats import t  # imported late: it takes a second, and only the report needs it

    return float(t.ppf((1 + level) / 2, degrees_of_freedom))


def _events(table: MatchTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the detections that are matched or ignored, by threshold and class.

    Most detections are neither. They count only through the sum of their weights, which a running sum provides.

    Returns:
        (V,) rows, (V,) bool whether they are true positives, and (T, C + 1) the start of each threshold and class.
    """
    masks = list(zip(table.is_matched, table.is_ignored, strict=True))
    rows = [np.flatnonzero(matched | ignored) for matched, ignored in masks]
    counted = [~ignored[found] for (_, ignored), found in zip(masks, rows, strict=True)]
    offsets = np.cumsum([0, *(len(found) for found in rows[:-1])])
    starts = [at + np.searchsorted(found, table.class_starts) for at, found in zip(offsets, rows, strict=True)]
    return np.concatenate(rows), np.concatenate(counted), np.array(starts)


def _mean(parts: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    """Return the mean of the finite values over axes, NaN where there is none."""
    known = np.isfinite(parts)
    count = known.sum(axis=axes)
    total: np.ndarray = np.where(known, parts, 0.0).sum(axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@njit(cache=True, nogil=True)
def _weighted_ap(weights, detections, events, labels, recalls):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    image_index, class_starts = detections
    event_rows, is_counted, event_starts = events
    num_thresholds, num_classes = event_starts.shape[0], len(class_starts) - 1
    running = np.empty(len(image_index) + 1, np.int64)
    right, precision = np.empty(len(event_rows)), np.empty(len(event_rows))
    num_labels = np.empty(num_classes, np.int64)
    figures = np.empty((len(weights), num_classes, num_thresholds))
    for b in range(len(weights)):
        num_labels[:] = 0
        for entry in range(len(labels[0])):
            num_labels[labels[1][entry]] += weights[b, labels[0][entry]] * labels[2][entry]
        running[0] = 0
        for row in range(len(image_index)):
            running[row + 1] = running[row] + weights[b, image_index[row]]
        for c in range(num_classes):
            for t in range(num_thresholds):
                start, stop = event_starts[t, c], event_starts[t, c + 1]
                figures[b, c, t] = _class_ap(
                    running, class_starts[c], event_rows[start:stop], is_counted[start:stop], num_labels[c],
                    recalls, right, precision,
                )  # fmt: skip
    return figures


@njit(cache=True, nogil=True)
def _class_ap(running, first_row, rows, is_counted, num_labels, recalls, right, precision):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    if num_labels == 0:
        return np.nan
    count, true, ignored = 0, 0.0, 0.0
    for event in range(len(rows)):
        row = rows[event]
        weight = running[row + 1] - running[row]
        if weight == 0:
            continue
        if not is_counted[event]:
            ignored += weight
            continue
        true += weight
        right[count] = true
        precision[count] = true / (running[row + 1] - running[first_row] - ignored + 2.220446049250313e-16)
        count += 1
    for k in range(count - 1, 0, -1):
        precision[k - 1] = max(precision[k - 1], precision[k])
    total, k = 0.0, 0
    for recall in recalls:
        while k < count and right[k] / num_labels < recall:
            k += 1
        if k == count:
            break
        total += precision[k]
    return 100.0 * total / len(recalls)
