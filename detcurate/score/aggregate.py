"""Aggregation of object values to image values, and combination of several measures to one image score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from detcurate.errors import ConfigError, PredictionError

Aggregation = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]
"""Function of (G,) values, their (G,) image index, the number of images I, and k; returns (I,) float64."""


def aggregate(
    values: np.ndarray,
    image_index: np.ndarray,
    num_images: int,
    *,
    aggregation: str = "top_k_mean",
    k: int = 3,
    object_weights: np.ndarray | None = None,
) -> np.ndarray:
    """Aggregate the objects of each image to one value.

    An image without objects gets 0. ``sum`` favours crowded images, ``max`` single outliers, ``mean`` images with few
    objects. ``top_k_mean`` (the mean of the k highest values) lies between ``max`` and ``mean``, ``sqrt_sum`` (sum
    divided by the root of the count) between ``mean`` and ``sum``. ``class_weighted_sum`` is a sum with weights
    inverse to the frequency of the class.

    Args:
        values: (G,) floating, one per object; higher = more disagreement.
        image_index: (G,) integers in [0, I), in any order.
        num_images: I, the number of images of the pool, including those without objects.
        aggregation: A name in ``AGGREGATIONS``.
        k: The k of ``top_k_mean``, at least 1.
        object_weights: (G,) floating, 0 or more, for ``class_weighted_sum``: ``class_weights(counts)[class_index]``.

    Returns:
        (I,) float64; higher = more disagreement.

    Raises:
        ConfigError: The aggregation is unknown, k is below 1, or weights are missing or superfluous.
        PredictionError: The columns differ in length or an index is outside [0, I).

    Source:
        Roy et al. 2018 and Brust et al. 2019 (arXiv 1809.09875): sum, average and maximum aggregation, and weights
        against the imbalance of classes; Haussmann et al. 2020 (arXiv 2004.04699) on crowds under sum.

    Example:
        >>> values, image_index = np.array([0.1, 0.5, 0.3, 0.3, 0.2]), np.array([0, 0, 0, 0, 2])
        >>> aggregate(values, image_index, 3, aggregation="max").tolist()
        [0.5, 0.0, 0.2]
        >>> aggregate(values, image_index, 3).round(4).tolist()  # (0.5 + 0.3 + 0.3) / 3
        [0.3667, 0.0, 0.2]
    """
    if aggregation not in AGGREGATIONS:
        raise ConfigError(f"CURATE.SCORE.AGGREGATION must be one of {', '.join(AGGREGATIONS)} (got {aggregation!r})")
    if k < 1:
        raise ConfigError(f"k must be at least 1 (got {k})")
    if (object_weights is not None) != (aggregation in WEIGHTED):
        raise ConfigError(f"object_weights must be given for {', '.join(WEIGHTED)} only (got {aggregation})")
    if values.shape != image_index.shape or values.ndim != 1:
        raise PredictionError(
            f"values and image_index must both have shape (G,) (got {values.shape} and {image_index.shape})"
        )
    if len(image_index) and not (0 <= image_index.min() and image_index.max() < num_images):
        raise PredictionError(
            f"image_index must be in [0, {num_images}) (got values from {image_index.min()} to {image_index.max()})"
        )
    if object_weights is not None:
        if object_weights.shape != values.shape:
            raise PredictionError(
                f"object_weights must have the shape of values (got {object_weights.shape} and {values.shape})"
            )
        values = values * object_weights
    return AGGREGATIONS[aggregation](values, image_index, num_images, k)


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Return class weights that are inverse to the frequency and 1 on average over the pool's boxes.

    A class without boxes gets the weight of a class with one box.

    Args:
        counts: (C,) integers, the number of boxes of each class in the pool.

    Returns:
        (C,) float64 above 0.

    Source:
        King and Zeng 2001; n / (C n_c), as scikit-learn's "balanced".

    Example:
        >>> class_weights(np.array([30, 10, 0])).round(2).tolist()
        [0.67, 2.0, 20.0]
    """
    seen = counts > 0
    weights: np.ndarray = max(int(counts.sum()), 1) / (max(int(seen.sum()), 1) * np.maximum(counts, 1))
    return weights


def _sum(values: np.ndarray, image_index: np.ndarray, num_images: int, k: int) -> np.ndarray:
    """Sum the values of each image; grows with the number of objects."""
    totals: np.ndarray = np.bincount(image_index, weights=values, minlength=num_images)
    return totals


def _count(image_index: np.ndarray, num_images: int) -> np.ndarray:
    """Return the (I,) divisor of the means: the number of objects, at least 1."""
    counts: np.ndarray = np.maximum(np.bincount(image_index, minlength=num_images), 1)
    return counts


def _mean(values: np.ndarray, image_index: np.ndarray, num_images: int, k: int) -> np.ndarray:
    """Average the values of each image."""
    means: np.ndarray = _sum(values, image_index, num_images, k) / _count(image_index, num_images)
    return means


def _sqrt_sum(values: np.ndarray, image_index: np.ndarray, num_images: int, k: int) -> np.ndarray:
    """Divide the sum by the square root of the number of objects: between sum and mean."""
    scaled: np.ndarray = _sum(values, image_index, num_images, k) / np.sqrt(_count(image_index, num_images))
    return scaled


def _top_k_mean(values: np.ndarray, image_index: np.ndarray, num_images: int, k: int) -> np.ndarray:
    """Average each image's ``k`` highest values; of all if there are fewer."""
    order = np.lexsort((-values, image_index))
    sorted_index = image_index[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_index, sorted_index)  # 0 for an image's highest value
    kept = order[place < k]
    return _mean(values[kept], image_index[kept], num_images, k)


def _max(values: np.ndarray, image_index: np.ndarray, num_images: int, k: int) -> np.ndarray:
    """Take each image's highest value."""
    highest = np.full(num_images, -np.inf)
    np.maximum.at(highest, image_index, values)
    return np.where(np.isinf(highest), 0.0, highest)


def _class_weighted_sum(values: np.ndarray, image_index: np.ndarray, num_images: int, k: int) -> np.ndarray:
    """Sum the values of each image, each times the weight of its class; rare classes weigh more."""
    return _sum(values, image_index, num_images, k)  # ``aggregate`` has applied the weights


AGGREGATIONS: Mapping[str, Aggregation] = {
    "max": _max,
    "mean": _mean,
    "sum": _sum,
    "top_k_mean": _top_k_mean,
    "sqrt_sum": _sqrt_sum,
    "class_weighted_sum": _class_weighted_sum,
}

WEIGHTED = ("class_weighted_sum",)
"""The aggregations with class weights."""


def _rank(values: np.ndarray) -> np.ndarray:
    """Scale average ranks to [0, 1]; one image, or images that are all equal, get 0.5."""
    from scipy.stats import rankdata  # imported late: it takes a second

    if len(values) < 2:
        return np.full(len(values), 0.5)
    ranks: np.ndarray = (rankdata(values) - 1.0) / (len(values) - 1)
    return ranks


def _zscore(values: np.ndarray) -> np.ndarray:
    """Return deviations from the mean in standard deviations (divided by I); equal values give 0."""
    # Compared as values, because equal floats may deviate from their rounded mean.
    if len(values) == 0 or values.min() == values.max():
        return np.zeros(len(values))
    standardised: np.ndarray = (values - values.mean()) / values.std()
    return standardised


def _none(values: np.ndarray) -> np.ndarray:
    return values


NORMALIZATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"rank": _rank, "zscore": _zscore, "none": _none}


def combine(
    components: Mapping[str, np.ndarray], weights: Mapping[str, float], *, normalization: str = "rank"
) -> np.ndarray:
    """Normalise components over the pool and return their weighted mean.

    With ``rank`` an image that is lowest in every component gets 0, one that is highest in every component gets 1, and
    one image alone, or images that are all equal, get 0.5 (``zscore``: 0). ``none`` uses the components unchanged, for
    components of one scale.

    Args:
        components: Name -> (I,) column; higher = more disagreement.
        weights: Name -> weight, 0 or more; components without a weight are ignored.
        normalization: A name in ``NORMALIZATIONS``.

    Returns:
        (I,) float64; higher = keep first.

    Raises:
        ConfigError: The normalization or the component of a weight is unknown, a weight is negative or not finite, the
            weights sum to 0, or the components differ in length.

    Example:
        >>> components = {"entropy": np.array([0.1, 0.7, 0.3]), "box_std": np.array([9.0, 2.0, 1.0])}
        >>> combine(components, {"entropy": 3.0, "box_std": 1.0}).tolist()
        [0.25, 0.875, 0.375]
    """
    if normalization not in NORMALIZATIONS:
        raise ConfigError(
            f"CURATE.SCORE.NORMALIZATION must be one of {', '.join(NORMALIZATIONS)} (got {normalization!r})"
        )
    _validate_weights(components, weights)
    normalize = NORMALIZATIONS[normalization]
    columns = [weight * normalize(np.asarray(components[name], np.float64)) for name, weight in weights.items()]
    score: np.ndarray = np.sum(columns, axis=0) / math.fsum(weights.values())
    return score


def _validate_weights(components: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> None:
    """Validate the weights, and that their components are columns of one length."""
    for name, weight in weights.items():
        if name not in components:
            raise ConfigError(f"weights must be for components among {', '.join(components)} (got {name!r})")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the weight of {name} must be finite and at least 0 (got {weight})")
    if not math.fsum(weights.values()) > 0:
        raise ConfigError(f"weights must have a sum above 0 (got {dict(weights)})")
    shapes = {name: np.shape(components[name]) for name in weights}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ConfigError(f"components must be columns of one length (got shapes {shapes})")
