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
from detcurate.structures import Clusters, Labels

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
    """

    missing_label: np.ndarray
    nearest_label: np.ndarray
    wrong_class: np.ndarray
    inaccurate_box: np.ndarray


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
    )


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
