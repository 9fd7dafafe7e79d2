"""Disagreement on the place: how far the boxes of the members that fired lie from each other.

A miss has no box and takes no part here: ``existence_entropy`` and the class measures count it. So an object that
one member alone saw has no disagreement on its place. Higher means more disagreement for every measure here.
"""

from __future__ import annotations

import numpy as np

from detcurate.boxes import paired_iou
from detcurate.structures import Clusters, Detections


def iou_dispersion(detections: Detections, clusters: Clusters) -> np.ndarray:
    """One less the mean overlap with the consensus box, 1 − (1/n) Σ_e IoU(b_e, μ) over the n members that fired.

    0 when all boxes are the same, towards 1 when they hardly touch their mean; 1 itself takes boxes that all miss it,
    and association forms no such cluster, for its last box overlaps the mean. No cluster gives no value.

    Args:
        detections: N rows.
        clusters: G clusters of E members, μ being their boxes.

    Returns:
        (G,) float64 in [0, 1); higher = more disagreement.

    Raises:
        PredictionError: A vote names a row that the detections do not have.

    Source:
        The idea of localization stability (Kao et al. 2018, arXiv 1801.05124), over an ensemble, turned round [ours]:
        stability is high where the boxes agree, a measure of disagreement is low there.

    Example:
        >>> pair = Detections(
        ...     image_ids=np.array([7, 7]),
        ...     member=np.array([0, 1]),
        ...     boxes=np.array([[0.0, 0.0, 8.0, 10.0], [0.0, 0.0, 12.0, 10.0]]),
        ...     scores=np.array([0.9, 0.8]),
        ...     class_index=np.array([0, 0]),
        ...     class_probs=np.array([[0.9, 0.1], [0.8, 0.2]]),
        ... )
        >>> one_object = Clusters(np.array([7]), np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[0, 1]]))
        >>> iou_dispersion(pair, one_object).round(4).tolist()  # 1 - (8/10 + 10/12) / 2
        [0.1833]
    """
    cluster, boxes = _fired_boxes(detections, clusters)
    overlap = _mean(paired_iou(boxes, clusters.boxes[cluster]), cluster, clusters)
    dispersion: np.ndarray = np.maximum(1.0 - overlap, 0.0)
    return dispersion


def box_std(detections: Detections, clusters: Clusters) -> np.ndarray:
    """Standard deviation of the boxes in units of the object's size, over the n members that fired.

    The root of the mean, over the four numbers (cx/w̄, cy/h̄, ln w, ln h), of their variance across members (divided by
    n); w̄ and h̄ are the consensus box's width and height. The same boxes on a larger scale give the same value.
    0 when all boxes are the same. No cluster gives no value.

    Args:
        detections: N rows.
        clusters: G clusters of E members.

    Returns:
        (G,) float64, 0 or more, no unit; higher = more disagreement.

    Raises:
        PredictionError: A vote names a row that the detections do not have.

    Source:
        The box parameters of R-CNN (Girshick et al. 2014, appendix C) as deviations from the consensus [ours].
    """
    cluster, boxes = _fired_boxes(detections, clusters)
    sizes = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # From the members' boxes and not from the float32 consensus, which may round a sliver's size to 0.
    consensus_sizes = np.column_stack([_mean(column, cluster, clusters) for column in sizes.T])
    variances = [
        _variance(column, cluster, clusters) for column in (*(centres / consensus_sizes[cluster]).T, *np.log(sizes).T)
    ]
    deviation: np.ndarray = np.sqrt(np.mean(variances, axis=0))
    return deviation


def _fired_boxes(detections: Detections, clusters: Clusters) -> tuple[np.ndarray, np.ndarray]:
    """The (V,) cluster and the (V, 4) float64 box of every vote that is not a miss."""
    clusters.validate_rows(detections)
    cluster, member = np.nonzero(clusters.votes >= 0)
    return cluster, detections.boxes[clusters.votes[cluster, member]].astype(np.float64)


def _mean(values: np.ndarray, cluster: np.ndarray, clusters: Clusters) -> np.ndarray:
    """(G,) mean of (V,) values over the votes of each cluster."""
    means: np.ndarray = np.bincount(cluster, weights=values, minlength=len(clusters)) / clusters.num_fired
    return means


def _variance(values: np.ndarray, cluster: np.ndarray, clusters: Clusters) -> np.ndarray:
    """(G,) variance, divided by n, of (V,) values over the votes of each cluster."""
    deviations = values - _mean(values, cluster, clusters)[cluster]
    return _mean(deviations**2, cluster, clusters)
