"""Disagreement on the class: what the members' posteriors over a cluster have in common, and what not.

A member with no detection in a cluster answers background with certainty, and the number of members E stands in every
denominator; with ``missing="ignore"`` in the evidence it is the number that fired. Entropies are in nats. Higher means
more disagreement, or less certainty, for every measure here. No cluster gives no value.

The ``posterior_form`` decides what a measure is of: of one distribution over C + 1 outcomes for a softmax; of C
questions of yes or no for sigmoids, where a miss says no to each and the class with the highest value counts.
"""

from __future__ import annotations

import numpy as np

from detcurate.score.cluster_statistics import ClusterStatistics


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of each row, −Σ_k p_k ln p_k; 0 for a row with a 1, ln K for a uniform one.

    Args:
        probabilities: (G, K) float64, rows that sum to 1.

    Returns:
        (G,) float64 in [0, ln K], nats.

    Example:
        >>> entropy_of(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])).round(4).tolist()
        [0.6931, 0.0]
    """
    logarithms = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    # Probabilities that round above 1 would give an entropy a hair below 0, and a bare minus would give -0.0.
    entropies: np.ndarray = np.maximum(0.0 - (probabilities * logarithms).sum(axis=-1), 0.0)
    return entropies


def yes_no_entropy(probs: np.ndarray) -> np.ndarray:
    """Entropy of yes or no, h(p) = −p ln p − (1 − p) ln(1 − p).

    0 at p = 0 and p = 1, ln 2 at 1/2.

    Args:
        probs: of any shape, floating, in [0, 1].

    Returns:
        float64 of the same shape, in [0, ln 2], nats.

    Example:
        >>> yes_no_entropy(np.array([0.0, 0.5, 0.9, 1.0])).round(4).tolist()
        [0.0, 0.6931, 0.3251, 0.0]
    """
    values = np.asarray(probs, np.float64)
    return entropy_of(np.stack((values, 1.0 - values), axis=-1))


def entropy(statistics: ClusterStatistics) -> np.ndarray:
    """Entropy of the consensus, H(p̄): the total uncertainty, the doubt that all members share included.

    0 when all members are certain of the same class, ln(C + 1) when the consensus is uniform; for sigmoids ln 2 when
    the consensus on a class is 1/2.

    Args:
        statistics: of G clusters.

    Returns:
        (G,) float64 in [0, ln(C + 1)], for sigmoids [0, ln 2], nats; higher = more uncertain.

    Source:
        Shannon 1948; H(p̄) = −Σ_k p̄_k ln p̄_k. Sigmoids: max_k h(p̄_k), h(p) = −p ln p − (1 − p) ln(1 − p); binary
        entropies as in Brust et al. 2019 (arXiv 1809.09875), their maximum over classes as in Haussmann et al. 2020
        (arXiv 2004.04699).
    """
    if statistics.is_sigmoid:
        highest: np.ndarray = yes_no_entropy(statistics.mean_probs[:, :-1]).max(axis=1)
        return highest
    return entropy_of(statistics.mean_probs)


def expected_entropy(statistics: ClusterStatistics) -> np.ndarray:
    """Mean of the members' own entropies, (1/E) Σ_e H(p_e): the doubt that each member has by itself.

    0 when every member is certain, whatever of; ln(C + 1) when each is uniform, for sigmoids ln 2 when each gives a
    class 1/2. A miss is certain and adds 0.

    Args:
        statistics: of G clusters.

    Returns:
        (G,) float64 in [0, ln(C + 1)], for sigmoids [0, ln 2], nats; higher = the members are less certain.

    Source:
        Houlsby et al. 2011 (arXiv 1112.5745), equation 2, second term. Sigmoids: max_k (1/E) Σ_e h(p_ek), h as in
        ``entropy``.
    """
    highest: np.ndarray = statistics.own_entropies.max(axis=1)
    return highest


def mutual_information(statistics: ClusterStatistics) -> np.ndarray:
    """Entropy of the consensus less the members' own, H(p̄) − (1/E) Σ_e H(p_e): what the members disagree on.

    0 when all members give the same posterior, certain or not; ln min(E, C + 1) when they are certain of as many
    different classes as there can be; for sigmoids ln 2 when half are certain of a class and half that it is not it.
    For sigmoids it is not ``entropy`` less ``expected_entropy``: each of these takes its own class.

    Args:
        statistics: of G clusters.

    Returns:
        (G,) float64 in [0, ln min(E, C + 1)], for sigmoids [0, ln 2], nats; higher = more disagreement.

    Source:
        Houlsby et al. 2011 (arXiv 1112.5745), equation 2 (BALD); the Jensen-Shannon divergence of the members
        (Lin 1991); an acquisition function of Chitta et al. 2019 (arXiv 1905.12737). Sigmoids:
        max_k [h(p̄_k) − (1/E) Σ_e h(p_ek)], the maximum over classes of Haussmann et al. 2020 (arXiv 2004.04699).

    Example:
        >>> from detcurate.score.cluster_statistics import gather_evidence
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
        >>> mutual_information(gather_evidence(pair, one_object)).round(4).tolist()
        [0.6931]
    """
    if statistics.is_sigmoid:
        total = yes_no_entropy(statistics.mean_probs[:, :-1])
    else:
        total = entropy_of(statistics.mean_probs)[:, None]
    # It is 0 or more by Jensen's inequality; the difference of two rounded sums need not be.
    information: np.ndarray = np.maximum((total - statistics.own_entropies).max(axis=1), 0.0)
    return information


def variation_ratio(statistics: ClusterStatistics) -> np.ndarray:
    """Share of the members that do not find the commonest outcome the most probable, 1 − max_k v_k / E.

    0 when all have the same favourite, background included; 1 − 1/min(E, C + 1) when they are split evenly. Blind to
    how certain each is.

    Args:
        statistics: of G clusters.

    Returns:
        (G,) float64 in [0, 1); higher = more disagreement.

    Source:
        Freeman 1965; Gal et al. 2017 (arXiv 1703.02910), section 4.
    """
    ratio: np.ndarray = 1.0 - statistics.outcomes.max(axis=1) / statistics.num_predictions
    return ratio


def vote_entropy(statistics: ClusterStatistics) -> np.ndarray:
    """Entropy of the members' favourites, −Σ_k (v_k/E) ln (v_k/E).

    0 when all have the same favourite, background included; ln min(E, C + 1) when they are split evenly.

    Args:
        statistics: of G clusters.

    Returns:
        (G,) float64 in [0, ln min(E, C + 1)], nats; higher = more disagreement.

    Source:
        Dagan and Engelson 1995.
    """
    return entropy_of(statistics.outcomes / statistics.num_predictions[:, None])


def margin(statistics: ClusterStatistics) -> np.ndarray:
    """One less the lead of the consensus's first outcome over its second, 1 − (p̄_(1) − p̄_(2)).

    0 when the consensus is certain, 1 when two outcomes are equally probable. For sigmoids the outcomes are the C
    classes, and none of them with 1 less their maximum.

    Args:
        statistics: of G clusters.

    Returns:
        (G,) float64 in [0, 1]; higher = more uncertain.

    Source:
        Scheffer et al. 2001, turned round so that higher is less certain; Brust et al. 2019 (arXiv 1809.09875).
    """
    two = np.partition(statistics.mean_probs, -2, axis=1)[:, -2:]
    lack: np.ndarray = 1.0 - (two[:, 1] - two[:, 0])
    return lack


def existence_entropy(statistics: ClusterStatistics) -> np.ndarray:
    """Entropy of the vote on existence, h(v/E) for v of E members that find an object the most probable.

    0 when all members find one, or none does; ln 2 when half of them do. A member whose most probable outcome is the
    background votes against, as one without a detection does: a detector's floor is low (0.05), and where detections
    of any score counted, the many hypotheses near it would have ln 2 and every image would be as good as another. For
    sigmoids an object is the most probable when a class has 1/2 or more. No cluster gives no value.

    Args:
        statistics: of G clusters.

    Returns:
        (G,) float64 in [0, ln 2], nats; higher = more disagreement.

    Source:
        Vote entropy (Dagan and Engelson 1995) of the two answers; h(v) = −v ln v − (1 − v) ln(1 − v).
    """
    return yes_no_entropy(statistics.outcomes[:, :-1].sum(axis=1) / statistics.num_members)


def iou_dispersion(statistics: ClusterStatistics) -> np.ndarray:
    """One less the mean overlap with the consensus box, 1 − (1/n) Σ_e IoU(b_e, μ) over the n members that fired.

    0 when all boxes are the same, towards 1 when they hardly touch their mean; 1 itself takes boxes that all miss it,
    and association forms no such cluster, for its last box overlaps the mean.

    Args:
        statistics: of G clusters, μ being their boxes.

    Returns:
        (G,) float64 in [0, 1); higher = more disagreement.

    Source:
        The idea of localization stability (Kao et al. 2018, arXiv 1801.05124), over an ensemble, turned round [ours]:
        stability is high where the boxes agree, a measure of disagreement is low there.

    Example:
        >>> from detcurate.score.cluster_statistics import gather_evidence
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
    dispersion: np.ndarray = np.maximum(1.0 - statistics.mean_iou, 0.0)
    return dispersion


def box_std(statistics: ClusterStatistics) -> np.ndarray:
    """Standard deviation of the boxes in units of the object's size, over the n members that fired.

    The root of the mean, over the four numbers (cx/w̄, cy/h̄, ln w, ln h), of their variance across members (divided by
    n); w̄ and h̄ are the members' mean width and height. The same boxes on a larger scale give the same value.
    0 when all boxes are the same.

    Args:
        statistics: of G clusters.

    Returns:
        (G,) float64, 0 or more, no unit; higher = more disagreement.

    Source:
        The box parameters of R-CNN (Girshick et al. 2014, appendix C) as deviations from the consensus [ours].
    """
    return statistics.box_deviation
