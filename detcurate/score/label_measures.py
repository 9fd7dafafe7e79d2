"""Label-aware measures: how hard each ground-truth box is for the members.

A member that missed the box gives its class a probability of 0. Higher means harder for every measure here, and a
wrong label is as hard as a hard object: see :mod:`detcurate.score.suspicion` for telling the two apart. No label gives
no value.
"""

from __future__ import annotations

import numpy as np

from detcurate.score.labels import LabelEvidence


def error_count(evidence: LabelEvidence) -> np.ndarray:
    """Share of the members that are wrong, #{e : argmax p_e ≠ y or missed} / E.

    0 when every member finds the label the most probable, 1 when none does.

    Args:
        evidence: of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, 1]; higher = more members are wrong.

    Source:
        The label-aware acquisition function of Chitta et al. 2019 (arXiv 1905.12737).
    """
    wrong: np.ndarray = 1.0 - evidence.is_right.mean(axis=1)
    return wrong


def el2n(evidence: LabelEvidence) -> np.ndarray:
    """Mean distance of the posterior from the label, (1/E) Σ_e ‖p_e − onehot(y)‖₂.

    0 when every member is certain of the label, √2 when every one is certain of something else or misses the box. For
    sigmoids over the C classes: a miss is at distance 1, and √C is the greatest.

    Args:
        evidence: of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, √2], for sigmoids [0, √C]; higher = farther from the label.

    Source:
        Paul et al. 2021 (arXiv 2107.07075), definition 2.
    """
    return evidence.distance


def forgetting(evidence: LabelEvidence) -> np.ndarray:
    """Number of times that a run unlearns the label: right at one member, wrong at the next, summed over the runs.

    0 when no member that follows a right one is wrong, never having been right included. Members of one checkpoint
    each cannot forget.

    Args:
        evidence: of J ground-truth boxes, with the runs' trajectories.

    Returns:
        (J,) float64, whole numbers, 0 or more; higher = forgotten more often.

    Source:
        Toneva et al. 2019 (arXiv 1812.05159), "forgetting event", at the checkpoints of a run.
    """
    events = np.zeros(len(evidence))
    for members in evidence.trajectories:
        is_right = evidence.is_right[:, members]
        events += (is_right[:, :-1] & ~is_right[:, 1:]).sum(axis=1)
    return events


def low_confidence(evidence: LabelEvidence) -> np.ndarray:
    """One less the mean probability of the label, 1 − (1/E) Σ_e q_e.

    0 when every member is certain of the label, 1 when none gives it anything.

    Args:
        evidence: of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, 1]; higher = less confident.

    Source:
        ``confidence`` of dataset cartography (Swayamdipta et al. 2020, arXiv 2009.10795), turned round.
    """
    lack: np.ndarray = np.maximum(1.0 - evidence.probability.mean(axis=1), 0.0)
    return lack


def variability(evidence: LabelEvidence) -> np.ndarray:
    """Standard deviation of the probability of the label over the members.

    0 when all members agree, 1/2 when half are certain of the label and half give it nothing.

    Args:
        evidence: of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, 1/2]; higher = more disagreement.

    Source:
        ``variability`` of dataset cartography (Swayamdipta et al. 2020, arXiv 2009.10795).
    """
    deviation: np.ndarray = evidence.probability.std(axis=1)
    return deviation


def prediction_variance(evidence: LabelEvidence) -> np.ndarray:
    """Variance over the members of the probability of the label, and of the overlap with its box, added.

    0 when all members give the same probability and overlap the box as much, 1/2 when half of them are perfect and
    half miss it.

    Args:
        evidence: of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, 1/2]; higher = more disagreement.

    Source:
        The idea of VPS, arXiv 2505.17245.
    """
    variance: np.ndarray = evidence.probability.var(axis=1) + evidence.iou.var(axis=1)
    return variance
