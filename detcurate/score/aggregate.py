"""Aggregation: from one value an object to one value an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from detcurate.errors import ConfigError, PredictionError

Aggregation = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""From (G,) values, the (G,) image index of each and the number of images I to (I,) float64."""


def aggregate(
    values: np.ndarray, image_index: np.ndarray, num_images: int, *, aggregation: str = "top_k_mean"
) -> np.ndarray:
    """Reduce the objects of each image to one value.

    An image without objects scores 0, whatever the aggregation. ``sum`` favours crowded images, ``max`` the single
    outlier, ``mean`` the images with few objects; ``top_k_mean`` (k = 3, or fewer where the image has fewer) stands
    between ``max`` and ``mean``, ``sqrt_sum`` (sum over the root of the count) between ``mean`` and ``sum``.

    Args:
        values: (G,) floating, one a object; higher = more disagreement.
        image_index: (G,) integers in [0, I), in any order.
        num_images: I, the images of the pool, those without objects included.
        aggregation: a name in ``AGGREGATIONS``.

    Returns:
        (I,) float64; higher = more disagreement.

    Raises:
        ConfigError: The aggregation has no such name.
        PredictionError: The two columns differ in length or an index is outside [0, I).

    Source:
        Roy et al. 2018 and Brust et al. 2019 (arXiv 1809.09875): sum, average and maximum aggregation;
        Haussmann et al. 2020 (arXiv 2004.04699) on crowds under sum.

    Example:
        >>> values, image_index = np.array([0.1, 0.5, 0.3, 0.3, 0.2]), np.array([0, 0, 0, 0, 2])
        >>> aggregate(values, image_index, 3, aggregation="max").tolist()
        [0.5, 0.0, 0.2]
        >>> aggregate(values, image_index, 3).round(4).tolist()  # (0.5 + 0.3 + 0.3) / 3
        [0.3667, 0.0, 0.2]
    """
    if aggregation not in AGGREGATIONS:
        raise ConfigError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
    if values.shape != image_index.shape or values.ndim != 1:
        raise PredictionError(
            f"values and image_index must both have shape (G,), got {values.shape} and {image_index.shape}"
        )
    if len(image_index) and not (0 <= image_index.min() and image_index.max() < num_images):
        raise PredictionError(
            f"image_index must be in [0, {num_images}), got values from {image_index.min()} to {image_index.max()}"
        )
    return AGGREGATIONS[aggregation](values, image_index, num_images)


def _sum(values: np.ndarray, image_index: np.ndarray, num_images: int) -> np.ndarray:
    totals: np.ndarray = np.bincount(image_index, weights=values, minlength=num_images)
    return totals


def _count(image_index: np.ndarray, num_images: int) -> np.ndarray:
    """The (I,) divisor of the means: the number of objects, 1 where there is none so that 0 / 1 stays 0."""
    counts: np.ndarray = np.maximum(np.bincount(image_index, minlength=num_images), 1)
    return counts


def _mean(values: np.ndarray, image_index: np.ndarray, num_images: int) -> np.ndarray:
    means: np.ndarray = _sum(values, image_index, num_images) / _count(image_index, num_images)
    return means


def _sqrt_sum(values: np.ndarray, image_index: np.ndarray, num_images: int) -> np.ndarray:
    scaled: np.ndarray = _sum(values, image_index, num_images) / np.sqrt(_count(image_index, num_images))
    return scaled


def _top_k_mean(values: np.ndarray, image_index: np.ndarray, num_images: int, *, k: int) -> np.ndarray:
    order = np.lexsort((-values, image_index))
    sorted_index = image_index[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_index, sorted_index)  # 0 for an image's highest value
    kept = order[place < k]
    return _mean(values[kept], image_index[kept], num_images)


AGGREGATIONS: Mapping[str, Aggregation] = {
    "max": partial(_top_k_mean, k=1),
    "mean": _mean,
    "sum": _sum,
    "top_k_mean": partial(_top_k_mean, k=3),
    "sqrt_sum": _sqrt_sum,
}
