"""From the detections of whole images to one row an object: clusters, and ground-truth boxes where there are any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detcurate.errors import ConfigError
from detcurate.score.associate import associate
from detcurate.score.evidence import Evidence, gather_evidence
from detcurate.score.labels import LabelEvidence, gather_label_evidence
from detcurate.score.measures import LABEL_MEASURES, MEASURES, SINGLE_MEMBER_MEASURES
from detcurate.score.suspicion import label_suspicion
from detcurate.structures import Clusters, Detections, Labels, ObjectScores


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
    """Associate the detections of one shard of images and measure the disagreement on every object.

    An image must lie in one shard as a whole; the shards' results are joined with ``ObjectScores.concatenate``.
    No detection gives no object.

    Args:
        detections: N rows, of any images in any order.
        num_members: E, the size of the ensemble, whether or not each member fired.
        measures: names in ``MEASURES``, one or more; of an ensemble of one, names in ``SINGLE_MEMBER_MEASURES``.
        iou_threshold: the least IoU with a cluster's mean box to be taken for the same object, in (0, 1].
        association: a name in ``ASSOCIATIONS``.
        per_class: whether detections of different classes are never of one object.
        missing: a name in ``MISSING``.

    Returns:
        G objects, ordered by image_id.

    Raises:
        ConfigError: A name does not exist, no measure is given, or one compares members and there is one member.
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
    """Measure the disagreement on clusters that are known already; as ``score_objects`` otherwise.

    Args:
        detections: N rows.
        clusters: G clusters of them.
        measures: names in ``MEASURES``.
        missing: a name in ``MISSING``.
    """
    return _cluster_scores(clusters, gather_evidence(detections, clusters, missing=missing), measures)


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
    """Do as ``score_objects``, and compare the members with the ground truth.

    The suspicions ``overlooked``, ``swapped`` and ``badly_located`` are always among the measures.

    Args:
        detections: N rows, of any images in any order.
        labels: J rows of the same images, crowd regions included.
        num_members: E.
        measures: names in ``MEASURES`` and ``LABEL_MEASURES``, one or more.
        iou_threshold: in (0, 1], for the association and for the match of detections to labels.
        association: a name in ``ASSOCIATIONS``.
        per_class: whether detections of different classes are never of one object.
        missing: a name in ``MISSING``.
        trajectories: the members of each run in iteration order, for ``forgetting``.

    Returns:
        The clusters, and the labels that are no crowd regions.

    Raises:
        ConfigError: As ``score_objects``.
        PredictionError: As ``score_objects``, or a label has a class that the detections do not know.
    """
    validate_measures(measures, num_members, known=(*MEASURES, *LABEL_MEASURES))
    clusters = associate(
        detections, num_members=num_members, iou_threshold=iou_threshold, method=association, per_class=per_class
    )
    evidence = gather_evidence(detections, clusters, missing=missing)
    answers = gather_label_evidence(
        detections, labels, num_members=num_members, iou_threshold=iou_threshold, trajectories=trajectories
    )
    # An object that one member alone saw has a confident consensus where its misses are ignored.
    counted = evidence if missing == "background" else gather_evidence(detections, clusters)
    suspicion = label_suspicion(clusters, counted, labels, answers, iou_threshold=iou_threshold)
    objects = labels.take(~labels.iscrowd)
    matched = np.append(objects.annotation_ids, -1)[suspicion.nearest_label]
    of_clusters = _cluster_scores(clusters, evidence, measures, annotation_ids=matched, overlooked=suspicion.overlooked)
    of_labels = _label_scores(
        objects, answers, measures, swapped=suspicion.swapped, badly_located=suspicion.badly_located
    )
    return of_clusters, of_labels


def validate_measures(measures: Sequence[str], num_members: int, *, known: Sequence[str]) -> None:
    """Raise ``ConfigError`` when a measure has no such name, none is given, or an ensemble of one cannot have it."""
    unknown = [name for name in measures if name not in known]
    if unknown or not measures:
        got = repr(unknown[0]) if unknown else "none"
        raise ConfigError(f"measures must be one or more of {', '.join(known)}, got {got}")
    comparing = [name for name in measures if name not in SINGLE_MEMBER_MEASURES]
    if num_members == 1 and comparing:
        raise ConfigError(
            f"measures of an ensemble of one member must be among {', '.join(SINGLE_MEMBER_MEASURES)}, got "
            f"{', '.join(comparing)}; members are what they compare, and one member agrees with itself on every "
            "object: train more members or measure its entropy"
        )


def _cluster_scores(
    clusters: Clusters,
    evidence: Evidence,
    measures: Sequence[str],
    *,
    annotation_ids: np.ndarray | None = None,
    overlooked: np.ndarray | None = None,
) -> ObjectScores:
    foreground = evidence.mean_probs[:, :-1]
    columns = {name: MEASURES[name](evidence) for name in measures if name in MEASURES}
    return ObjectScores(
        image_ids=clusters.image_ids,
        boxes=clusters.boxes,
        num_fired=evidence.num_fired,
        class_index=foreground.argmax(axis=1).astype(np.int32),
        confidence=foreground.max(axis=1),
        votes=evidence.favourites,
        annotation_ids=np.full(len(clusters), -1) if annotation_ids is None else annotation_ids,
        measures=columns if overlooked is None else {**columns, "overlooked": overlooked},
    )


def _label_scores(
    labels: Labels, evidence: LabelEvidence, measures: Sequence[str], **suspicions: np.ndarray
) -> ObjectScores:
    rows = np.arange(len(labels))
    return ObjectScores(
        image_ids=labels.image_ids,
        boxes=labels.boxes.astype(np.float32),
        num_fired=(evidence.votes >= 0).sum(axis=1),
        class_index=labels.class_index.astype(np.int32),
        confidence=evidence.mean_probs[rows, labels.class_index],
        votes=evidence.favourites,
        annotation_ids=labels.annotation_ids,
        measures={name: LABEL_MEASURES[name](evidence) for name in measures if name in LABEL_MEASURES} | suspicions,
    )
