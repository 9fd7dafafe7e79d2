"""Scores of objects (clusters and ground-truth boxes) and of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from detcurate.errors import ConfigError, PredictionError
from detcurate.score.aggregate import WEIGHTED, aggregate, combine
from detcurate.score.associate import associate
from detcurate.score.cluster_statistics import ClusterStatistics, gather_cluster_statistics
from detcurate.score.label_errors import LABEL_ERRORS, label_error_scores
from detcurate.score.label_measures import LabelStatistics, gather_label_statistics
from detcurate.score.measures import LABEL_MEASURES, MEASURES, SINGLE_MEMBER_MEASURES
from detcurate.structures import Clusters, Detections, ImageScores, Labels, ObjectScores, validate_ascending


def score_objects(
    detections: Detections,
    *,
    num_members: int,
    measures: Sequence[str],
    iou_threshold: float = 0.5,
    association: str = "sequential",
    per_class: bool = False,
    missing: str = "background",
) -> ObjectScores:
    """Associate the detections of one shard of images, and measure the disagreement on every cluster.

    All detections of an image must be in one shard; join the results of shards with ``ObjectScores.concatenate``.

    Args:
        detections: N rows, of any images in any order.
        num_members: E, the size of the ensemble, including members without detections.
        measures: Names in ``MEASURES``, at least one; for one member, names in ``SINGLE_MEMBER_MEASURES``.
        iou_threshold: The smallest IoU with a cluster's mean box to join it, in (0, 1].
        association: A name in ``ASSOCIATIONS``.
        per_class: Whether clusters have detections of one class only.
        missing: A name in ``MISSING``.

    Returns:
        G objects, ordered by image_id.

    Raises:
        ConfigError: A name is unknown, no measure is given, or a measure compares members and there is one member.
        PredictionError: A member is outside [0, E), or the threshold is outside (0, 1].
    """
    validate_measures(measures, num_members, known=tuple(MEASURES))
    clusters = associate(
        detections, num_members=num_members, iou_threshold=iou_threshold, method=association, per_class=per_class
    )
    return score_clusters(detections, clusters, measures=measures, missing=missing)


def score_clusters(
    detections: Detections,
    clusters: Clusters,
    *,
    measures: Sequence[str],
    missing: str = "background",
) -> ObjectScores:
    """Measure the disagreement on given clusters; otherwise like ``score_objects``.

    Args:
        detections: N rows.
        clusters: G clusters of them.
        measures: Names in ``MEASURES``.
        missing: A name in ``MISSING``.
    """
    return _cluster_scores(clusters, gather_cluster_statistics(detections, clusters, missing=missing), measures)


def score_labelled_objects(
    detections: Detections,
    labels: Labels,
    *,
    num_members: int,
    measures: Sequence[str],
    iou_threshold: float = 0.5,
    association: str = "sequential",
    per_class: bool = False,
    missing: str = "background",
    trajectories: Sequence[Sequence[int]] = (),
) -> tuple[ObjectScores, ObjectScores]:
    """Score clusters like ``score_objects``, and ground-truth boxes by the members' predictions at them.

    The label-error scores ``missing_label``, ``wrong_class`` and ``inaccurate_box`` are always included.

    Args:
        detections: N rows, of any images in any order.
        labels: J rows of the same images, including crowd regions.
        num_members: E.
        measures: Names in ``MEASURES`` and ``LABEL_MEASURES``, at least one.
        iou_threshold: In (0, 1], for the association and for the match of detections to labels.
        association: A name in ``ASSOCIATIONS``.
        per_class: Whether clusters have detections of one class only.
        missing: A name in ``MISSING``.
        trajectories: The members of each run in iteration order, for ``forgetting``.

    Returns:
        The clusters, and the labels without crowd regions, with their consensus columns.

    Raises:
        ConfigError: See ``score_objects``.
        PredictionError: See ``score_objects``, or a label has a class beyond those of the detections.
    """
    validate_measures(measures, num_members, known=(*MEASURES, *LABEL_MEASURES))
    clusters = associate(
        detections, num_members=num_members, iou_threshold=iou_threshold, method=association, per_class=per_class
    )
    statistics = gather_cluster_statistics(detections, clusters, missing=missing)
    predictions = gather_label_statistics(
        detections, labels, num_members=num_members, iou_threshold=iou_threshold, trajectories=trajectories
    )
    # With ignored misses, an object that only one member detects would have a confident consensus.
    counted = statistics if missing == "background" else gather_cluster_statistics(detections, clusters)
    label_error_score = label_error_scores(clusters, counted, labels, predictions, iou_threshold=iou_threshold)
    objects = labels.take(~labels.iscrowd)
    matched = np.append(objects.annotation_ids, -1)[label_error_score.nearest_label]
    of_clusters = _cluster_scores(
        clusters, statistics, measures, annotation_ids=matched, missing_label=label_error_score.missing_label
    )
    of_labels = _label_scores(
        objects,
        predictions,
        measures,
        wrong_class=label_error_score.wrong_class,
        inaccurate_box=label_error_score.inaccurate_box,
    )
    return of_clusters, _with_consensus(of_labels, of_clusters, label_error_score.own_cluster)


def _with_consensus(labels: ObjectScores, clusters: ObjectScores, own_cluster: np.ndarray) -> ObjectScores:
    """Return the labels with box, class, confidence and votes of the cluster that each is compared with."""
    has_cluster = own_cluster >= 0
    boxes, class_index = labels.boxes.copy(), np.full(len(labels), -1, np.int32)
    confidence, votes = np.zeros(len(labels)), np.zeros(len(labels), np.int32)
    own = own_cluster[has_cluster]
    boxes[has_cluster], class_index[has_cluster] = clusters.boxes[own], clusters.class_index[own]
    confidence[has_cluster] = clusters.confidence[own]
    votes[has_cluster] = (clusters.votes[own] == clusters.class_index[own, None]).sum(axis=1)
    return replace(
        labels,
        consensus_boxes=boxes,
        consensus_class=class_index,
        consensus_confidence=confidence,
        consensus_votes=votes,
    )


def validate_measures(measures: Sequence[str], num_members: int, *, known: Sequence[str]) -> None:
    """Raise ``ConfigError`` if a measure is unknown, none is given, or it needs more than one member."""
    unknown = [name for name in measures if name not in known]
    if unknown or not measures:
        got = repr(unknown[0]) if unknown else "none"
        raise ConfigError(f"CURATE.SCORE.MEASURES must be one or more of {', '.join(known)} (got {got})")
    comparing = [name for name in measures if name not in SINGLE_MEMBER_MEASURES]
    if num_members == 1 and comparing:
        raise ConfigError(
            f"CURATE.SCORE.MEASURES: an ensemble of one member can use only {', '.join(SINGLE_MEMBER_MEASURES)} (got "
            f"{', '.join(comparing)}, which compare members). Train more members, or use entropy."
        )


def _cluster_scores(
    clusters: Clusters,
    statistics: ClusterStatistics,
    measures: Sequence[str],
    *,
    annotation_ids: np.ndarray | None = None,
    missing_label: np.ndarray | None = None,
) -> ObjectScores:
    foreground = statistics.mean_probs[:, :-1]
    columns = {name: MEASURES[name](statistics) for name in measures if name in MEASURES}
    return ObjectScores(
        image_ids=clusters.image_ids,
        boxes=clusters.boxes,
        num_fired=statistics.num_fired,
        class_index=foreground.argmax(axis=1).astype(np.int32),
        confidence=foreground.max(axis=1),
        votes=statistics.favourites,
        annotation_ids=np.full(len(clusters), -1) if annotation_ids is None else annotation_ids,
        measures=columns if missing_label is None else {**columns, "missing_label": missing_label},
    )


def _label_scores(
    labels: Labels, statistics: LabelStatistics, measures: Sequence[str], **label_errors: np.ndarray
) -> ObjectScores:
    rows = np.arange(len(labels))
    return ObjectScores(
        image_ids=labels.image_ids,
        boxes=labels.boxes.astype(np.float32),
        num_fired=(statistics.votes >= 0).sum(axis=1),
        class_index=labels.class_index.astype(np.int32),
        confidence=statistics.mean_probs[rows, labels.class_index],
        votes=statistics.favourites,
        annotation_ids=labels.annotation_ids,
        measures={name: LABEL_MEASURES[name](statistics) for name in measures if name in LABEL_MEASURES} | label_errors,
    )


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
    """Aggregate the objects of whole images to one column per measure.

    An image without objects has 0 in every column. Label-error scores are aggregated with ``max`` whatever the
    aggregation, because one wrong label is enough.

    Args:
        image_ids: (I,) int64, ascending and unique.
        objects: G clusters of these images, in any order.
        labels: J ground-truth boxes of these images, in any order.
        aggregation: A name in ``AGGREGATIONS``.
        k: The k of ``top_k_mean``.
        class_weights: (C,) weights of the classes, for the aggregations in ``WEIGHTED``.

    Returns:
        Name -> (I,) float64; and ``num_objects`` and, with labels, ``num_labels``, int64.

    Raises:
        ConfigError: The aggregation is unknown, or weights are missing.
        PredictionError: An object is on another image.
        SelectionError: The image_ids are not ascending and unique.
    """
    validate_ascending("image_ids", image_ids)  # the binary search below needs it
    components: dict[str, np.ndarray] = {}
    for rows, count in ((objects, COUNTS[0]), (labels, COUNTS[1])):
        if rows is None:
            continue
        image_index = _image_index(rows.image_ids, image_ids)
        weights = class_weights[rows.class_index] if class_weights is not None and aggregation in WEIGHTED else None
        for name, values in rows.measures.items():
            if name in LABEL_ERRORS:
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
    """Combine the components to one score per image, normalised over the whole pool.

    Args:
        image_ids: (I,) int64, ascending and unique, every image of the pool.
        components: Name -> (I,), including ``num_objects``.
        weights: Component -> weight, 0 or more; components without a weight do not affect the score.
        normalization: A name in ``NORMALIZATIONS``.
        without_objects: A name in ``WITHOUT_OBJECTS``: the score of images without detections. ``zero`` combines their
            components of 0; the others assign the lowest, median or highest score of the other images. Images with
            labels keep their own score if a measure that uses labels has a weight.

    Raises:
        ConfigError: A name is unknown, or the weights are invalid.
    """
    if without_objects not in WITHOUT_OBJECTS:
        raise ConfigError(
            f"CURATE.SCORE.WITHOUT_OBJECTS must be one of {', '.join(WITHOUT_OBJECTS)} (got {without_objects!r})"
        )
    score = combine(components, weights, normalization=normalization)
    is_empty = components["num_objects"] == 0
    if "num_labels" in components and any(name in LABEL_MEASURES and weights[name] > 0 for name in weights):
        is_empty = is_empty & (components["num_labels"] == 0)
    statistic = WITHOUT_OBJECTS[without_objects]
    if statistic is not None and not is_empty.all():
        score = np.where(is_empty, statistic(score[~is_empty]), score)
    return ImageScores(image_ids, score, dict(components))


WITHOUT_OBJECTS = {"zero": None, "lowest": np.min, "median": np.median, "highest": np.max}
"""Score of images without detections: their components of 0, or a statistic of the other images' scores."""


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
    """Score the images of a pool that fits in memory: ``image_components``, then ``combine_images``."""
    components = image_components(image_ids, objects, labels, aggregation=aggregation, k=k, class_weights=class_weights)
    return combine_images(
        image_ids, components, weights=weights, normalization=normalization, without_objects=without_objects
    )


def score_box_correlation(scores: ImageScores) -> float:
    """Return Spearman's rank correlation of image score and number of objects: the preference for crowded images.

    1 when more objects always score higher, 0 when score and count are unrelated. 0 also where the correlation is
    undefined: fewer than two images, or a constant column.

    Args:
        scores: I rows with a component ``num_objects``.

    Returns:
        A number in [-1, 1].

    Source:
        Spearman 1904; the crowd bias of summed uncertainty: Haussmann et al. 2020 (arXiv 2004.04699).
    """
    from scipy.stats import spearmanr  # imported late: it takes a second

    columns = (scores.image_score, scores.components["num_objects"])
    if any(len(column) < 2 or column.min() == column.max() for column in columns):
        return 0.0
    return float(np.clip(spearmanr(*columns).statistic, -1.0, 1.0))


def _image_index(object_image_ids: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """Return (G,) positions in the ascending ``image_ids``."""
    positions = np.searchsorted(image_ids, object_image_ids)
    found = positions < len(image_ids)
    found[found] = image_ids[positions[found]] == object_image_ids[found]
    if not found.all():
        raise PredictionError(
            f"objects must be on the pool's {len(image_ids)} images (got image_id {object_image_ids[~found][0]}). "
            "Score the pool that was predicted."
        )
    return positions
