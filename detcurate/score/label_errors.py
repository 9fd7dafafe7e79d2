"""Suspicion: how likely a label is wrong, and in which of three ways.

``missing_label``: the members are confident of an object, and nothing is labelled there. ``wrong_class``: they agree on
another class than the label's. ``inaccurate_box``: they agree on another box than the label's. Each is in [0, 1], and
higher is more suspicious. They tell wrong labels from hard ones by what the members *agree* on: a hard object has
members that miss it or differ, and gets no suspicion from that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detcurate.score.associate import kernel_array
from detcurate.score.cluster_statistics import ClusterStatistics
from detcurate.score.kernels.cluster_sums import compare_clusters
from detcurate.score.label_measures import LabelStatistics, by_image
from detcurate.structures import Clusters, Labels, ObjectScores

LABEL_ERRORS = ("missing_label", "wrong_class", "inaccurate_box")

_IN_CROWD = 0.5


@dataclass(frozen=True)
class LabelErrorScores:
    """How suspicious the labels of some images are.

    Args:
        missing_label: (G,) float64 in [0, 1], of each cluster.
        nearest_label: (G,) int64, the row of the label that each cluster overlaps most, crowd regions left out as in
            the label evidence; -1 where it overlaps none.
        wrong_class: (J,) float64 in [0, 1], of each label that is no crowd region.
        inaccurate_box: (J,) float64 in [0, 1], likewise.
        own_cluster: (J,) int64, likewise: the row of the cluster that ``inaccurate_box`` compares with the label; -1
            where no cluster overlaps it.
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
    """Tell how suspicious each label is, and each place without one.

    - missing_label, of a cluster with the consensus confidence c and the IoU o with its nearest label: c (1 − o/t), 0
      at o = t (``iou_threshold``) and above. A label that is merely touched explains nothing, so a car whose neighbour
      is labelled can lack a label. A cluster half of which lies in a crowd region is not.
    - wrong_class, of a label y with the consensus p̄ at its box: max_{k ≠ y} p̄_k − p̄_y over the C classes, at least 0. A
      label that the members miss has no p̄ to speak of, and is not wrong_class.
    - inaccurate_box, of a label whose clusters include one of confidence c, mean overlap a of its members, and IoU o
      with the label: c (a − o), at least 0, for the cluster with the greatest c o. Its clusters are those that overlap
      no other label more, and those that no label explains (all IoU below t), for the place of a shifted label may be
      nearer to its neighbour's; an IoU below 0.05 is no more than a touch. It is 0 where the label lies as near to the
      consensus as the members themselves do, so where they do not agree with each other.

    Args:
        clusters: G clusters.
        statistics: of the clusters.
        labels: of the same images, crowd regions included.
        label_statistics: of the labels that are no crowd regions.
        iou_threshold: in (0, 1], that of the association.

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
    """What the ensemble sees in place of K suspected labels.

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
    """Return what the ensemble sees in place of suspected labels.

    - missing_label, of a cluster: its own box, class, confidence and votes.
    - inaccurate_box: box, class, confidence and votes of the cluster that is compared with the label.
    - wrong_class: the class other than the label's with most votes among the members' predictions at the label, of
      equally many that of the compared cluster, else the first; the box is the compared cluster's, the label's own
      where there is none.

    Args:
        objects: K rows, a row twice where two kinds of error are suspected; of labels with their consensus.
        kinds: (K,) integers, the place of each row's suspected error in ``LABEL_ERRORS``.
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
    """Return the compared cluster's box, class, confidence and votes; those of no cluster where none is known."""
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
    """Compare clusters and labels, whose rows may be in any order.

    Returns:
        Of each cluster: its nearest label, counted without the crowd regions, its IoU, and its share in a crowd. Of
        each label that is no crowd region: the cluster that speaks for it, and its IoU. -1 and 0 for none.
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
    without_crowds = np.append(np.cumsum(~labels.iscrowd)[label_rows] - 1, -1)  # the last is for -1, that is none
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
