"""Disagreement on the place: how far the boxes of the members that fired lie from each other.

A miss has no box and takes no part here: ``existence_entropy`` and the class measures count it. So an object that
one member alone saw has no disagreement on its place. Higher means more disagreement for every measure here. No
cluster gives no value.
"""

from __future__ import annotations

import numpy as np

from detcurate.score.evidence import Evidence


def iou_dispersion(evidence: Evidence) -> np.ndarray:
    """One less the mean overlap with the consensus box, 1 − (1/n) Σ_e IoU(b_e, μ) over the n members that fired.

    0 when all boxes are the same, towards 1 when they hardly touch their mean; 1 itself takes boxes that all miss it,
    and association forms no such cluster, for its last box overlaps the mean.

    Args:
        evidence: of G clusters, μ being their boxes.

    Returns:
        (G,) float64 in [0, 1); higher = more disagreement.

    Source:
        The idea of localization stability (Kao et al. 2018, arXiv 1801.05124), over an ensemble, turned round [ours]:
        stability is high where the boxes agree, a measure of disagreement is low there.

    Example:
        >>> from detcurate.score.evidence import gather_evidence
        >>> from detcurate.structures import Clusters, Detections
        >>> pair = Detections(
        ...     image_ids=np.array([7, 7]),
        ...     member=np.array([0, 1]),
        ...     boxes=np.array([[0.0, 0.0, 8.0, 10.0], [0.0, 0.0, 12.0, 10.0]]),
        ...     scores=np.array([0.9, 0.8]),
        ...     class_index=np.array([0, 0]),
        ...     class_probs=np.array([[0.9, 0.1], [0.8, 0.2]]),
        ... )
        >>> one_object = Clusters(np.array([7]), np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[0, 1]]))
        >>> iou_dispersion(gather_evidence(pair, one_object)).round(4).tolist()  # 1 - (8/10 + 10/12) / 2
        [0.1833]
    """
    dispersion: np.ndarray = np.maximum(1.0 - evidence.mean_iou, 0.0)
    return dispersion


def box_std(evidence: Evidence) -> np.ndarray:
    """Standard deviation of the boxes in units of the object's size, over the n members that fired.

    The root of the mean, over the four numbers (cx/w̄, cy/h̄, ln w, ln h), of their variance across members (divided by
    n); w̄ and h̄ are the members' mean width and height. The same boxes on a larger scale give the same value.
    0 when all boxes are the same.

    Args:
        evidence: of G clusters.

    Returns:
        (G,) float64, 0 or more, no unit; higher = more disagreement.

    Source:
        The box parameters of R-CNN (Girshick et al. 2014, appendix C) as deviations from the consensus [ours].
    """
    return evidence.box_deviation
