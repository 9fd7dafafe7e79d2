"""Combination: several measures of an image on one scale, and their weighted mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from detcurate.errors import ConfigError


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Rank (I,) values from 1 for the lowest to I; equal values share the mean of their ranks.

    Example:
        >>> average_ranks(np.array([0.2, 0.9, 0.2, 0.5])).tolist()
        [1.5, 4.0, 1.5, 3.0]
    """
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    highest = np.cumsum(counts)
    ranks: np.ndarray = (highest - (counts - 1) / 2)[group]
    return ranks


def _rank(values: np.ndarray) -> np.ndarray:
    """Average ranks scaled to [0, 1]; without any order to tell (one image, or all equal) the middle, 0.5."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    return (average_ranks(values) - 1.0) / (len(values) - 1)


def _zscore(values: np.ndarray) -> np.ndarray:
    """Deviations from the mean in standard deviations (divided by I); all equal gives 0."""
    # Compared as values: the deviation of equal floats from their rounded mean need not be 0.
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
    """Normalise each component over the pool and take the weighted mean of those that have a weight.

    Under ``rank`` an image that is last by every component gets 0 and one that is first by every one gets 1; a pool of
    one image, or of images that are all alike, gets 0.5. ``zscore`` gives 0 there. ``none`` leaves the components as
    they are, for components that share a scale already. An empty pool gives no value.

    Args:
        components: name -> (I,) column; higher = more disagreement.
        weights: name -> weight, 0 or more; a component that is not named has no part in the score.
        normalization: a name in ``NORMALIZATIONS``.

    Returns:
        (I,) float64; higher = keep first.

    Raises:
        ConfigError: The normalization or a weight names what does not exist, a weight is negative or not finite, the
            weights sum to 0, or the components differ in length.

    Example:
        >>> components = {"entropy": np.array([0.1, 0.7, 0.3]), "box_std": np.array([9.0, 2.0, 1.0])}
        >>> combine(components, {"entropy": 3.0, "box_std": 1.0}).tolist()
        [0.25, 0.875, 0.375]
    """
    if normalization not in NORMALIZATIONS:
        raise ConfigError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    _validate_weights(components, weights)
    normalize = NORMALIZATIONS[normalization]
    columns = [weight * normalize(np.asarray(components[name], np.float64)) for name, weight in weights.items()]
    score: np.ndarray = np.sum(columns, axis=0) / math.fsum(weights.values())
    return score


def _validate_weights(components: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> None:
    """Check that the weights are usable and that the components they name are columns of one length."""
    for name, weight in weights.items():
        if name not in components:
            raise ConfigError(f"weights must name components among {', '.join(components)}, got {name!r}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the weight of {name} must be finite and at least 0, got {weight}")
    if not math.fsum(weights.values()) > 0:
        raise ConfigError(f"weights must sum to more than 0, got {dict(weights)}; give one component a weight of 1")
    shapes = {name: np.shape(components[name]) for name in weights}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ConfigError(f"components must be columns of one length, got shapes {shapes}")
