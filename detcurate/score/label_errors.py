"""Label-error scores: how likely a label is wrong, and in which of three ways.

``missing_label``: the members are confident of an object without a label. ``wrong_class``: they agree on another class
than the label's. ``inaccurate_box``: they agree on another box than the label's. Each score is in [0, 1]; higher means
more likely wrong. The members' *agreement* distinguishes wrong labels from difficult objects: on a difficult object the
members miss or differ, so it gets a low score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detcurate.score.associate import kernel_array
from detcurate.score.cluster_statistics import ClusterStatistics
from detcurate.score.kernels.cluster_sums import compare_clusters
from detcurate.score.label_measures import LabelStatistics, by_image
from detcurate.structures import Clusters, Labels, ObjectScores

LABEL_ERROR_MEANINGS = {
    "missing_label": "Label-error score in [0, 1]: a confident consensus where nothing is labelled.",
    "wrong_class": "Label-error score in [0, 1]: the members agree on another class than the label's.",
    "inaccurate_box": "Label-error score in [0, 1]: the members agree on another box than the label's.",
}
LABEL_ERRORS = tuple(LABEL_ERROR_MEANINGS)

_IN_CROWD = 0.5


@dataclass(frozen=True)
class LabelErrorScores:
    """The label-error scores of some images.

    Args:
        missing_label: (G,) float64 in [0, 1], one per cluster.
        nearest_label: (G,) int64, the row of the label that each cluster overlaps most, counted without crowd regions;
            -1 for none.
        wrong_class: (J,) float64 in [0, 1], one per label without crowd regions.
        inaccurate_box: (J,) float64 in [0, 1], one per label without crowd regions.
        own_cluster: (J,) int64, the row of the cluster that ``inaccurate_box`` compares with each label; -1 for none.
    """

    missing_label: np.ndarray
    nearest_label: np.ndarray
    wrong_class: np.ndarray
    inaccurate_box: np.ndarray
    own_cluster: np.ndarray


def label_error_scores(
    clusters: Clusters,
    statistics: ClusterStatistics,
    labels: Labels,
    label_statistics: LabelStatistics,
    *,
    iou_threshold: float = 0.5,
) -> LabelErrorScores:
    """Compute the label-error scores of labels, and of clusters without a label.

    - missing_label, for a cluster with consensus confidence c and IoU o with its nearest label: c (1 − o/t), and 0 if
      o ≥ t (``iou_threshold``). A small overlap does not count as a label, so an object beside a labelled one can be
      missing. Clusters with at least half of their area in a crowd region get 0.
    - wrong_class, for a label y with the consensus p̄ at its box: max_{k ≠ y} p̄_k − p̄_y over the C classes, at least 0.
      Labels that the members miss get 0.
    - inaccurate_box, for a label and a cluster of confidence c, mean IoU a of its members with its box, and IoU o with
      the label: c (a − o), at least 0, for the cluster with the greatest c o. Candidates are clusters that overlap no
      other label more, and clusters with an IoU below t with all labels, because a shifted label may be nearer to
      another object; an IoU below 0.05 is ignored. The score is 0 if the label is as near to the consensus as the
      members' own boxes are, and so where the members disagree.

    Args:
        clusters: G clusters.
        statistics: Of the clusters.
        labels: Labels of the same images, including crowd regions.
        label_statistics: Of the labels without crowd regions.
        iou_threshold: In (0, 1], that of the association.

    Source:
        The three kinds are ObjectLab's (Tkachenko et al. 2023, arXiv 2309.00832). The formulas are [ours]: over an
        ensemble, and without ObjectLab's exclusion of every prediction that touches a label.
    """
    confidence = statistics.mean_probs[:, :-1].max(axis=1)
    nearest, overlap, in_crowd, own, own_overlap = _compare(clusters, labels, confidence, iou_threshold)
    explained = np.minimum(overlap / iou_threshold, 1.0)
    missing_label = np.where(in_crowd >= _IN_CROWD, 0.0, confidence * (1.0 - explained))
    excess = np.append(statistics.mean_iou, 0.0)[own] - own_overlap
    return LabelErrorScores(
        missing_label=missing_label,
        nearest_label=nearest,
        wrong_class=_wrong_class(label_statistics, labels.class_index[~labels.iscrowd]),
        inaccurate_box=np.append(confidence, 0.0)[own] * np.maximum(excess, 0.0),
        own_cluster=own,
    )


@dataclass(frozen=True)
class Corrections:
    """The corrections that the ensemble proposes for K suspected label errors.

    Args:
        boxes: (K, 4) float64, xyxy in absolute pixels.
        class_index: (K,) int64 in [0, C); -1 where no member votes for another class than the label's.
        score: (K,) float64 in [0, 1], the consensus probability of that class; where another class than that of the
            consensus has most votes, its share of the votes.
        num_votes: (K,) int64 in [0, E], the members whose most probable class it is.
    """

    boxes: np.ndarray
    class_index: np.ndarray
    score: np.ndarray
    num_votes: np.ndarray


def corrections(objects: ObjectScores, kinds: np.ndarray, *, num_classes: int) -> Corrections:
    """Return the corrections that the ensemble proposes for suspected label errors.

    - missing_label, of a cluster: its own box, class, confidence and votes.
    - inaccurate_box, of a label: box, class, confidence and votes of the cluster that it is compared with.
    - wrong_class, of a label: the class other than the label's with most votes among the members' predictions at the
      label. Ties go to the compared cluster's class, else to the first. The box is the compared cluster's, or the
      label's own if there is none.

    Args:
        objects: K rows, with consensus columns for labels; an object with two suspected errors has two rows.
        kinds: (K,) integers, the index of each row's suspected error in ``LABEL_ERRORS``.
        num_classes: C.
    """
    rows, num_members = np.arange(len(objects)), objects.votes.shape[1]
    is_missing, is_swap = (kinds == LABEL_ERRORS.index(name) for name in ("missing_label", "wrong_class"))
    counts = np.zeros((len(objects), num_classes + 2), np.int64)  # the last two: background, and members that missed
    np.add.at(counts, (rows[:, None], objects.votes), 1)
    counts = counts[:, :num_classes]
    boxes, consensus, confidence, votes = _consensus(objects)
    boxes = np.where(is_missing[:, None], objects.boxes, boxes).astype(np.float64)
    consensus = np.where(is_missing, objects.class_index, consensus)
    confidence = np.where(is_missing, objects.confidence, confidence)
    votes = np.where(is_missing, counts[rows, objects.class_index], votes)
    others = counts.copy()
    others[rows, objects.class_index] = 0
    most = others.max(axis=1, initial=0)
    is_tied = (consensus >= 0) & (others[rows, np.maximum(consensus, 0)] == most)
    other = np.where(most == 0, -1, np.where(is_tied, consensus, others.argmax(axis=1)))
    class_index = np.where(is_swap, other, consensus)
    num_votes = np.where(is_swap, most, votes)
    score = np.where(class_index == consensus, confidence, num_votes / num_members)
    return Corrections(boxes, class_index.astype(np.int64), np.where(class_index < 0, 0.0, score), num_votes)


def _consensus(objects: ObjectScores) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the compared cluster's box, class, confidence and votes; without consensus columns those of no cluster."""
    if objects.consensus_boxes is None:
        nothing = np.zeros(len(objects), np.int64)
        return objects.boxes, nothing - 1, nothing.astype(np.float64), nothing
    class_index, confidence, votes = (
        np.asarray(column)
        for column in (objects.consensus_class, objects.consensus_confidence, objects.consensus_votes)
    )
    return objects.consensus_boxes, class_index, confidence, votes


def _compare(
    clusters: Clusters, labels: Labels, confidence: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compare clusters and labels in any order.

    Returns:
        For each cluster its nearest label, counted without crowd regions, their IoU, and the share of its area in a
        crowd region. For each label without crowd regions the cluster that it is compared with, and their IoU. -1 and 0
        for none.
    """
    image_ids = np.union1d(clusters.image_ids, labels.image_ids)
    rows, starts = by_image(clusters.image_ids, image_ids)
    label_rows, label_starts = by_image(labels.image_ids, image_ids)
    nearest, overlap, in_crowd, own, own_overlap = compare_clusters(
        starts,
        label_starts,
        kernel_array(clusters.boxes[rows], np.float32),
        kernel_array(confidence[rows], np.float64),
        labels.boxes[label_rows].astype(np.float32),
        labels.iscrowd[label_rows],
        float(iou_threshold),
    )
    without_crowds = np.append(np.cumsum(~labels.iscrowd)[label_rows] - 1, -1)  # the last entry is for -1
    of_clusters = [_in_row_order(rows, column) for column in (without_crowds[nearest], overlap, in_crowd)]
    of_labels = [_in_row_order(label_rows, column) for column in (np.append(rows, -1)[own], own_overlap)]
    return (*of_clusters, *(column[~labels.iscrowd] for column in of_labels))


def _in_row_order(rows: np.ndarray, column: np.ndarray) -> np.ndarray:
    ordered = np.empty_like(column)
    ordered[rows] = column
    return ordered


def _wrong_class(statistics: LabelStatistics, label_class: np.ndarray) -> np.ndarray:
    rows = np.arange(len(label_class))
    others = statistics.mean_probs[:, :-1].copy()
    others[rows, label_class] = 0.0
    lead: np.ndarray = np.maximum(others.max(axis=1) - statistics.mean_probs[rows, label_class], 0.0)
    return lead
