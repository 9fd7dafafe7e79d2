"""The two steps of scoring a pool: shard by shard to objects and images, then all images to one score each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from detcurate.errors import ConfigError, PredictionError
from detcurate.score.aggregate import WEIGHTED, aggregate
from detcurate.score.combine import average_ranks, combine
from detcurate.score.measures import LABEL_MEASURES
from detcurate.score.suspicion import SUSPICIONS
from detcurate.structures import ImageScores, ObjectScores, validate_ascending

COUNTS = ("num_objects", "num_labels")


def image_components(
    image_ids: np.ndarray,
    objects: ObjectScores,
    labels: ObjectScores | None = None,
    *,
    aggregation: str = "top_k_mean",
    k: int = 3,
    class_weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Aggregate the objects of whole images to a column a measure.

    An image without objects has 0 in every column. A suspicion is taken from the most suspicious object, whatever the
    aggregation, for one wrong label is what it is about.

    Args:
        image_ids: (I,) int64, ascending and unique, the images that are asked about.
        objects: G clusters of these images, in any order.
        labels: J ground-truth boxes of these images, in any order.
        aggregation: a name in ``AGGREGATIONS``.
        k: of ``top_k_mean``.
        class_weights: (C,) weights of the classes, for the aggregations in ``WEIGHTED``.

    Returns:
        name -> (I,) float64, and ``num_objects``, with labels ``num_labels`` too, int64.

    Raises:
        ConfigError: The aggregation has no such name, or weights are missing.
        PredictionError: An object lies on another image.
        SelectionError: The image_ids are not ascending and unique.
    """
    validate_ascending("image_ids", image_ids)  # before the search in them, which would miss images that are there
    components: dict[str, np.ndarray] = {}
    for rows, count in ((objects, COUNTS[0]), (labels, COUNTS[1])):
        if rows is None:
            continue
        image_index = _image_index(rows.image_ids, image_ids)
        weights = class_weights[rows.class_index] if class_weights is not None and aggregation in WEIGHTED else None
        for name, values in rows.measures.items():
            if name in SUSPICIONS:
                components[name] = aggregate(values, image_index, len(image_ids), aggregation="max")
            else:
                components[name] = aggregate(
                    values, image_index, len(image_ids), aggregation=aggregation, k=k, object_weights=weights
                )
        components[count] = np.bincount(image_index, minlength=len(image_ids)).astype(np.int64)
    return components


def combine_images(
    image_ids: np.ndarray,
    components: Mapping[str, np.ndarray],
    *,
    weights: Mapping[str, float],
    normalization: str = "rank",
    without_objects: str = "zero",
) -> ImageScores:
    """Combine the components of the whole pool to one score an image.

    Normalisation is over the pool, so this step wants all of it.

    Args:
        image_ids: (I,) int64, ascending and unique, every image of the pool.
        components: name -> (I,), ``num_objects`` among them.
        weights: component -> weight, 0 or more; what is not named is kept in the table only.
        normalization: a name in ``NORMALIZATIONS``.
        without_objects: a name in ``WITHOUT_OBJECTS``: the score of an image on which no member saw anything. ``zero``
            leaves its components 0; the others give it the lowest, the median or the highest of the other scores. An
            image with labels keeps its own score where a label-aware measure has a weight.

    Raises:
        ConfigError: A name that does not exist, or weights that cannot be used.
    """
    if without_objects not in WITHOUT_OBJECTS:
        raise ConfigError(f"without_objects must be one of {', '.join(WITHOUT_OBJECTS)}, got {without_objects!r}")
    score = combine(components, weights, normalization=normalization)
    is_empty = components["num_objects"] == 0
    if "num_labels" in components and any(name in LABEL_MEASURES and weights[name] > 0 for name in weights):
        is_empty = is_empty & (components["num_labels"] == 0)
    statistic = WITHOUT_OBJECTS[without_objects]
    if statistic is not None and not is_empty.all():
        score = np.where(is_empty, statistic(score[~is_empty]), score)
    return ImageScores(image_ids, score, dict(components))


WITHOUT_OBJECTS = {"zero": None, "lowest": np.min, "median": np.median, "highest": np.max}
"""What an image without detections scores: nothing in every component, or a figure of the other images' scores."""


def score_images(
    objects: ObjectScores,
    image_ids: np.ndarray,
    *,
    labels: ObjectScores | None = None,
    weights: Mapping[str, float],
    aggregation: str = "top_k_mean",
    k: int = 3,
    class_weights: np.ndarray | None = None,
    normalization: str = "rank",
    without_objects: str = "zero",
) -> ImageScores:
    """Score the images of a pool that fits into memory: ``image_components``, then ``combine_images``."""
    components = image_components(image_ids, objects, labels, aggregation=aggregation, k=k, class_weights=class_weights)
    return combine_images(
        image_ids, components, weights=weights, normalization=normalization, without_objects=without_objects
    )


def score_box_correlation(scores: ImageScores) -> float:
    """Spearman's rank correlation of an image's score with its number of objects: how much the score buys crowds.

    1 when more objects always score higher, 0 when the count says nothing, and 0 too where it is undefined (fewer
    than two images, or a column that is constant).

    Args:
        scores: I rows with a component ``num_objects``.

    Returns:
        A number in [-1, 1].

    Source:
        Spearman 1904; the crowd bias of summed uncertainty: Haussmann et al. 2020 (arXiv 2004.04699).
    """
    score_ranks = average_ranks(scores.image_score)
    count_ranks = average_ranks(scores.components["num_objects"])
    deviations = np.stack((score_ranks, count_ranks)) - (len(scores) + 1) / 2
    norms = np.linalg.norm(deviations, axis=1)
    if not norms.all():
        return 0.0
    return float(np.clip(deviations[0] @ deviations[1] / norms.prod(), -1.0, 1.0))


def _image_index(object_image_ids: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """(G,) positions in the ascending ``image_ids``."""
    positions = np.searchsorted(image_ids, object_image_ids)
    found = positions < len(image_ids)
    found[found] = image_ids[positions[found]] == object_image_ids[found]
    if not found.all():
        raise PredictionError(
            f"objects must lie on the pool's {len(image_ids)} images, got image_id {object_image_ids[~found][0]}; "
            "score the pool that was predicted"
        )
    return positions
