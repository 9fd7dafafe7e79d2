"""How sure: average precision on resampled images, and intervals over training seeds and images together."""

from __future__ import annotations

import numpy as np
from numba import njit

from detcurate.errors import PredictionError
from detcurate.evaluate.matches import MatchTable

_RECALLS = np.linspace(0.0, 1.0, 101)


def image_weights(num_images: int, num_replicates: int, *, seed: int = 0) -> np.ndarray:
    """Draw how often each image stands in each resampled evaluation set.

    Args:
        num_images: I, at least 1.
        num_replicates: B.
        seed: of the draw; the same for all models that are compared, so that they are compared on the same images.

    Returns:
        (B, I) int64 whose rows sum to I.

    Source:
        Efron 1979, the bootstrap.
    """
    chances = np.full(num_images, 1.0 / num_images)
    return np.random.default_rng(seed).multinomial(num_images, chances, size=num_replicates)


def weighted_ap(table: MatchTable, weights: np.ndarray) -> np.ndarray:
    """COCO's AP when each image counts as often as its weight says.

    With a weight of 1 an image it is the AP of ``pycocotools``; classes without a box in the sample are left out, and a
    sample without any box gives NaN.

    Args:
        table: Of one model.
        weights: (B, I) integers, 0 or more.

    Returns:
        (B,) float64 in [0, 100].

    Source:
        ``pycocotools.cocoeval.COCOeval.accumulate``: precision made monotone, read at 101 recalls, averaged over
        classes and IoU thresholds.
    """
    if weights.ndim != 2 or weights.shape[1] != len(table.num_labels):
        raise PredictionError(f"weights must have shape (B, {len(table.num_labels)}), got {weights.shape}")
    figures: np.ndarray = _weighted_ap(
        np.ascontiguousarray(weights, np.int64),
        table.image_index,
        table.class_starts,
        np.ascontiguousarray(table.is_matched),
        np.ascontiguousarray(table.is_ignored),
        np.ascontiguousarray(weights @ table.num_labels, np.int64),
        _RECALLS,
    )
    return figures


def paired_interval(
    first: np.ndarray, second: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of the mean difference, over training seeds and images resampled together.

    Seeds are drawn again for each replicate of the images, and both arms share seed and images in each draw. With few
    seeds it is narrower than it should be: Student's interval over the seeds belongs beside it.

    Args:
        first: (B, S) AP of one arm on B resampled sets, a column a seed.
        second: (B, S) the same of the other arm, with the same seeds and sets.
        level: in (0, 1).
        seed: of the draw of seeds.

    Returns:
        The two ends; NaN where no replicate has a difference.

    Raises:
        PredictionError: The two differ in shape.
    """
    if first.shape != second.shape:
        raise PredictionError(f"both arms must have the same replicates and seeds, got {first.shape}, {second.shape}")
    replicates, num_seeds = first.shape
    drawn = np.random.default_rng(seed).integers(0, num_seeds, (replicates, num_seeds))
    differences = np.take_along_axis(first - second, drawn, axis=1).mean(axis=1)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return float("nan"), float("nan")
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@njit(cache=True, nogil=True)
def _weighted_ap(weights, image_index, starts, is_matched, is_ignored, num_labels, recalls):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    num_thresholds, most = is_matched.shape[0], 0
    for c in range(len(starts) - 1):
        most = max(most, starts[c + 1] - starts[c])
    right, precision = np.empty(most), np.empty(most)
    figures = np.empty(len(weights))
    for b in range(len(weights)):
        total, parts = 0.0, 0
        for c in range(len(starts) - 1):
            if num_labels[b, c] == 0:
                continue
            for t in range(num_thresholds):
                total += _class_ap(
                    weights[b], image_index, starts[c], starts[c + 1], is_matched[t], is_ignored[t], num_labels[b, c],
                    recalls, right, precision,
                )  # fmt: skip
                parts += 1
        figures[b] = 100.0 * total / parts if parts else np.nan
    return figures


@njit(cache=True, nogil=True)
def _class_ap(  # type: ignore[no-untyped-def]  # noqa: ANN202
    weights, image_index, start, stop, is_matched, is_ignored, num_labels, recalls, right, precision  # noqa: ANN001
):  # fmt: skip
    count, true, false = 0, 0.0, 0.0
    for row in range(start, stop):
        weight = weights[image_index[row]]
        if weight == 0:
            continue
        if not is_ignored[row]:
            if is_matched[row]:
                true += weight
            else:
                false += weight
        right[count] = true
        precision[count] = true / (true + false + 2.220446049250313e-16)
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
    return total / len(recalls)
