"""Measures of the members' disagreement about class, box and existence of a cluster; higher = more disagreement.

A member without a detection in a cluster predicts background with probability 1, and every denominator is the number of
members E. With ``missing="ignore"`` in the statistics only members that fired count. Entropies are in nats.

With softmax posteriors a measure is a function of one distribution over C + 1 outcomes. With sigmoids the entropies are
those of each class as a binary variable, with probability 0 for a miss, and the maximum over the classes is returned.
"""

from __future__ import annotations

import numpy as np

from detcurate.score.cluster_statistics import ClusterStatistics


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy of each row, −Σ_k p_k ln p_k: 0 for a row with a 1, ln K for a uniform row.

    Args:
        probabilities: (G, K) float64, rows that sum to 1.

    Returns:
        (G,) float64 in [0, ln K], nats.

    Example:
        >>> entropy_of(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])).round(4).tolist()
        [0.6931, 0.0]
    """
    logarithms = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    # Probabilities that round above 1 would give a slightly negative entropy, and a unary minus would give -0.0.
    entropies: np.ndarray = np.maximum(0.0 - (probabilities * logarithms).sum(axis=-1), 0.0)
    return entropies


def binary_entropy(probs: np.ndarray) -> np.ndarray:
    """Return the binary entropy, h(p) = −p ln p − (1 − p) ln(1 − p): 0 at p = 0 and p = 1, ln 2 at 1/2.

    Args:
        probs: Any shape, floating, in [0, 1].

    Returns:
        float64 of the same shape, in [0, ln 2], nats.

    Example:
        >>> binary_entropy(np.array([0.0, 0.5, 0.9, 1.0])).round(4).tolist()
        [0.0, 0.6931, 0.3251, 0.0]
    """
    values = np.asarray(probs, np.float64)
    return entropy_of(np.stack((values, 1.0 - values), axis=-1))


def entropy(statistics: ClusterStatistics) -> np.ndarray:
    """Return the entropy of the consensus, H(p̄): the total uncertainty of the ensemble.

    0 when all members are certain of the same class, ln(C + 1) when the consensus is uniform; for sigmoids ln 2 when
    the consensus on a class is 1/2.

    Args:
        statistics: Of G clusters.

    Returns:
        (G,) float64 in [0, ln(C + 1)], for sigmoids [0, ln 2], nats; higher = more uncertain.

    Source:
        Shannon 1948; H(p̄) = −Σ_k p̄_k ln p̄_k. Sigmoids: max_k h(p̄_k), h(p) = −p ln p − (1 − p) ln(1 − p); binary
        entropies as in Brust et al. 2019 (arXiv 1809.09875), their maximum over classes as in Haussmann et al. 2020
        (arXiv 2004.04699).
    """
    if statistics.is_sigmoid:
        highest: np.ndarray = binary_entropy(statistics.mean_probs[:, :-1]).max(axis=1)
        return highest
    return entropy_of(statistics.mean_probs)


def expected_entropy(statistics: ClusterStatistics) -> np.ndarray:
    """Return the mean entropy of the members, (1/E) Σ_e H(p_e): their individual uncertainty.

    0 when every member is certain of some class; ln(C + 1) when each is uniform, for sigmoids ln 2 when each gives a
    class 1/2. A miss is certain and adds 0.

    Args:
        statistics: Of G clusters.

    Returns:
        (G,) float64 in [0, ln(C + 1)], for sigmoids [0, ln 2], nats; higher = the members are less certain.

    Source:
        Houlsby et al. 2011 (arXiv 1112.5745), equation 2, second term. Sigmoids: max_k (1/E) Σ_e h(p_ek), h as in
        ``entropy``.
    """
    highest: np.ndarray = statistics.own_entropies.max(axis=1)
    return highest


def mutual_information(statistics: ClusterStatistics) -> np.ndarray:
    """Return the entropy of the consensus minus the members' mean entropy, H(p̄) − (1/E) Σ_e H(p_e): disagreement.

    0 when all members give the same posterior, certain or not; ln min(E, C + 1) when they are certain of as many
    different classes as possible; for sigmoids ln 2 when half of them are certain of a class and half exclude it. For
    sigmoids it differs from ``entropy`` minus ``expected_entropy``, which take the maximum over classes separately.

    Args:
        statistics: Of G clusters.

    Returns:
        (G,) float64 in [0, ln min(E, C + 1)], for sigmoids [0, ln 2], nats; higher = more disagreement.

    Source:
        Houlsby et al. 2011 (arXiv 1112.5745), equation 2 (BALD); the Jensen-Shannon divergence of the members
        (Lin 1991); an acquisition function of Chitta et al. 2019 (arXiv 1905.12737). Sigmoids:
        max_k [h(p̄_k) − (1/E) Σ_e h(p_ek)], the maximum over classes of Haussmann et al. 2020 (arXiv 2004.04699).

    Example:
        >>> from detcurate.score.cluster_statistics import gather_cluster_statistics
        >>> from detcurate.structures import Clusters, Detections
        >>> pair = Detections(
        ...     image_ids=np.array([7, 7]),
        ...     member=np.array([0, 1]),
        ...     boxes=np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]]),
        ...     scores=np.array([1.0, 1.0]),
        ...     class_index=np.array([0, 1]),
        ...     class_probs=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        ... )
        >>> one_object = Clusters(np.array([7]), np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[0, 1]]))
        >>> mutual_information(gather_cluster_statistics(pair, one_object)).round(4).tolist()
        [0.6931]
    """
    if statistics.is_sigmoid:
        total = binary_entropy(statistics.mean_probs[:, :-1])
    else:
        total = entropy_of(statistics.mean_probs)[:, None]
    # At least 0 by Jensen's inequality, but the difference of two rounded sums may be slightly below.
    information: np.ndarray = np.maximum((total - statistics.own_entropies).max(axis=1), 0.0)
    return information


def variation_ratio(statistics: ClusterStatistics) -> np.ndarray:
    """Return the share of members that do not predict the most common class, 1 − max_k v_k / E.

    0 when all predict the same class, background included; 1 − 1/min(E, C + 1) when they are split evenly. The
    certainty of the members has no effect.

    Args:
        statistics: Of G clusters.

    Returns:
        (G,) float64 in [0, 1); higher = more disagreement.

    Source:
        Freeman 1965; Gal et al. 2017 (arXiv 1703.02910), section 4.
    """
    ratio: np.ndarray = 1.0 - statistics.outcomes.max(axis=1) / statistics.num_predictions
    return ratio


def vote_entropy(statistics: ClusterStatistics) -> np.ndarray:
    """Return the entropy of the members' predicted classes, −Σ_k (v_k/E) ln (v_k/E).

    0 when all predict the same class, background included; ln min(E, C + 1) when they are split evenly.

    Args:
        statistics: Of G clusters.

    Returns:
        (G,) float64 in [0, ln min(E, C + 1)], nats; higher = more disagreement.

    Source:
        Dagan and Engelson 1995.
    """
    return entropy_of(statistics.outcomes / statistics.num_predictions[:, None])


def margin(statistics: ClusterStatistics) -> np.ndarray:
    """Return 1 minus the difference of the two highest consensus probabilities, 1 − (p̄_(1) − p̄_(2)).

    0 when the consensus is certain, 1 when two outcomes are equally probable. For sigmoids the outcomes are the C
    classes and background, with 1 minus their maximum.

    Args:
        statistics: Of G clusters.

    Returns:
        (G,) float64 in [0, 1]; higher = more uncertain.

    Source:
        Scheffer et al. 2001, with the sign reversed; Brust et al. 2019 (arXiv 1809.09875).
    """
    two = np.partition(statistics.mean_probs, -2, axis=1)[:, -2:]
    lack: np.ndarray = 1.0 - (two[:, 1] - two[:, 0])
    return lack


def existence_entropy(statistics: ClusterStatistics) -> np.ndarray:
    """Return the entropy of the vote on existence, h(v/E) for v of E members that predict an object.

    0 when all members predict an object or none does; ln 2 when half of them do. A member with background as its most
    probable class counts as one without a detection. Detections of any score must not count: a detector's score
    threshold is low (0.05), so nearly every image would have many weak hypotheses with ln 2. For sigmoids an object is
    predicted when a class has 1/2 or more.

    Args:
        statistics: Of G clusters.

    Returns:
        (G,) float64 in [0, ln 2], nats; higher = more disagreement.

    Source:
        Vote entropy (Dagan and Engelson 1995) of two outcomes; h(v) = −v ln v − (1 − v) ln(1 − v).
    """
    return binary_entropy(statistics.outcomes[:, :-1].sum(axis=1) / statistics.num_members)


def iou_dispersion(statistics: ClusterStatistics) -> np.ndarray:
    """Return 1 minus the mean IoU with the consensus box, 1 − (1/n) Σ_e IoU(b_e, μ) over the n members that fired.

    0 when all boxes are equal, near 1 when they barely overlap their mean. It stays below 1 because the last box of a
    cluster overlaps the mean.

    Args:
        statistics: Of G clusters with boxes μ.

    Returns:
        (G,) float64 in [0, 1); higher = more disagreement.

    Source:
        The idea of localization stability (Kao et al. 2018, arXiv 1801.05124), over an ensemble and with the sign
        reversed [ours].

    Example:
        >>> from detcurate.score.cluster_statistics import gather_cluster_statistics
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
        >>> iou_dispersion(gather_cluster_statistics(pair, one_object)).round(4).tolist()  # 1 - (8/10 + 10/12) / 2
        [0.1833]
    """
    dispersion: np.ndarray = np.maximum(1.0 - statistics.mean_iou, 0.0)
    return dispersion


def box_std(statistics: ClusterStatistics) -> np.ndarray:
    """Return the standard deviation of the boxes in units of the object's size, over the n members that fired.

    The root of the mean variance of (cx/w̄, cy/h̄, ln w, ln h) across members (divided by n); w̄ and h̄ are the members'
    mean width and height. Independent of scale; 0 when all boxes are equal.

    Args:
        statistics: Of G clusters.

    Returns:
        (G,) float64, 0 or more, no unit; higher = more disagreement.

    Source:
        The box parameters of R-CNN (Girshick et al. 2014, appendix C) as deviations from the consensus [ours].
    """
    return statistics.box_deviation
