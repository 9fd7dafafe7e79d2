"""The two steps of scoring a pool: shard by shard to objects, then all objects to one score an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from detcurate.errors import ConfigError, PredictionError
from detcurate.score.aggregate import aggregate
from detcurate.score.associate import associate
from detcurate.score.classification import consensus_probs
from detcurate.score.combine import average_ranks, combine
from detcurate.score.measures import MEASURES, SINGLE_MEMBER_MEASURES
from detcurate.structures import Detections, ImageScores, ObjectScores, validate_ascending


def score_objects(
    detections: Detections, *, num_members: int, measures: Sequence[str], iou_threshold: float = 0.5
) -> ObjectScores:
    """Associate the detections of one shard of images and measure the disagreement on every object.

    An image must lie in one shard as a whole; the shards' results are joined with ``ObjectScores.concatenate``.
    No detection gives no object.

    Args:
        detections: N rows, of any images in any order.
        num_members: E, the size of the ensemble, whether or not each member fired.
        measures: names in ``MEASURES``, one or more; of an ensemble of one, names in ``SINGLE_MEMBER_MEASURES``.
        iou_threshold: the least IoU with a cluster's mean box to be taken for the same object, in (0, 1].

    Returns:
        G objects, ordered by image_id.

    Raises:
        ConfigError: A measure has no such name, none is given, or one compares members and there is one member.
        PredictionError: A member is outside [0, E), or the threshold is outside (0, 1].
    """
    validate_measures(measures, num_members)
    clusters = associate(detections, num_members=num_members, iou_threshold=iou_threshold)
    foreground = consensus_probs(detections, clusters)[:, :-1]
    return ObjectScores(
        image_ids=clusters.image_ids,
        boxes=clusters.boxes,
        num_fired=clusters.num_fired,
        class_index=foreground.argmax(axis=1).astype(np.int32),
        confidence=foreground.max(axis=1),
        measures={name: MEASURES[name](detections, clusters) for name in measures},
    )


def score_images(
    objects: ObjectScores,
    image_ids: np.ndarray,
    *,
    aggregation: str = "top_k_mean",
    weights: Mapping[str, float],
    normalization: str = "rank",
) -> ImageScores:
    """Aggregate the objects of the whole pool to its images and combine the measures to one score.

    An image without objects has 0 in every component. Normalisation is over the pool, so this step wants all of it.

    Args:
        objects: G objects of the pool's images, in any order.
        image_ids: (I,) int64, ascending and unique, every image of the pool.
        aggregation: a name in ``AGGREGATIONS``.
        weights: measure -> weight, 0 or more; each measure that is not named is kept in the table only.
        normalization: a name in ``NORMALIZATIONS``.

    Returns:
        I rows with one component a measure, and ``num_objects``, int64.

    Raises:
        ConfigError: A name that does not exist, or weights that cannot be used.
        PredictionError: An object lies on an image that is not in the pool.
        SelectionError: The image_ids are not ascending and unique.
    """
    validate_ascending("image_ids", image_ids)  # before the search in them, which would miss images that are there
    image_index = _image_index(objects.image_ids, image_ids)
    components = {
        name: aggregate(values, image_index, len(image_ids), aggregation=aggregation)
        for name, values in objects.measures.items()
    }
    image_score = combine(components, weights, normalization=normalization)
    num_objects = np.bincount(image_index, minlength=len(image_ids)).astype(np.int64)
    return ImageScores(image_ids, image_score, {**components, "num_objects": num_objects})


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


def validate_measures(measures: Sequence[str], num_members: int) -> None:
    """Raise ``ConfigError`` when a measure has no such name, none is given, or an ensemble of one cannot have it."""
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        got = repr(unknown[0]) if unknown else "none"
        raise ConfigError(f"measures must be one or more of {', '.join(MEASURES)}, got {got}")
    comparing = [name for name in measures if name not in SINGLE_MEMBER_MEASURES]
    if num_members == 1 and comparing:
        raise ConfigError(
            f"measures of an ensemble of one member must be among {', '.join(SINGLE_MEMBER_MEASURES)}, got "
            f"{', '.join(comparing)}; members are what they compare, and one member agrees with itself on every "
            "object: train more members or measure its entropy"
        )


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
