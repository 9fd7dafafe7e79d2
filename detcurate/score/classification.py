"""Disagreement on the class: what the members' posteriors over a cluster have in common, and what not.

A member with no detection in a cluster answers background with certainty, and the number of members E stands in every
denominator; with ``missing="ignore"`` in the evidence it is the number that fired. Entropies are in nats. Higher means
more disagreement, or less certainty, for every measure here. No cluster gives no value.

The ``posterior_form`` decides what a measure is of: of one distribution over C + 1 outcomes for a softmax; of C
questions of yes or no for sigmoids, where a miss says no to each and the class with the highest value counts.
"""

from __future__ import annotations

import numpy as np

from detcurate.score.entropies import entropy_of, yes_no_entropy
from detcurate.score.evidence import Evidence


def entropy(evidence: Evidence) -> np.ndarray:
    """Entropy of the consensus, H(p̄): the total uncertainty, the doubt that all members share included.

    0 when all members are certain of the same class, ln(C + 1) when the consensus is uniform; for sigmoids ln 2 when
    the consensus on a class is 1/2.

    Args:
        evidence: of G clusters.

    Returns:
        (G,) float64 in [0, ln(C + 1)], for sigmoids [0, ln 2], nats; higher = more uncertain.

    Source:
        Shannon 1948; H(p̄) = −Σ_k p̄_k ln p̄_k. Sigmoids: max_k h(p̄_k), h(p) = −p ln p − (1 − p) ln(1 − p); binary
        entropies as in Brust et al. 2019 (arXiv 1809.09875), their maximum over classes as in Haussmann et al. 2020
        (arXiv 2004.04699).
    """
    if evidence.is_sigmoid:
        highest: np.ndarray = yes_no_entropy(evidence.mean_probs[:, :-1]).max(axis=1)
        return highest
    return entropy_of(evidence.mean_probs)


def expected_entropy(evidence: Evidence) -> np.ndarray:
    """Mean of the members' own entropies, (1/E) Σ_e H(p_e): the doubt that each member has by itself.

    0 when every member is certain, whatever of; ln(C + 1) when each is uniform, for sigmoids ln 2 when each gives a
    class 1/2. A miss is certain and adds 0.

    Args:
        evidence: of G clusters.

    Returns:
        (G,) float64 in [0, ln(C + 1)], for sigmoids [0, ln 2], nats; higher = the members are less certain.

    Source:
        Houlsby et al. 2011 (arXiv 1112.5745), equation 2, second term. Sigmoids: max_k (1/E) Σ_e h(p_ek), h as in
        ``entropy``.
    """
    highest: np.ndarray = evidence.own_entropies.max(axis=1)
    return highest


def mutual_information(evidence: Evidence) -> np.ndarray:
    """Entropy of the consensus less the members' own, H(p̄) − (1/E) Σ_e H(p_e): what the members disagree on.

    0 when all members give the same posterior, certain or not; ln min(E, C + 1) when they are certain of as many
    different classes as there can be; for sigmoids ln 2 when half are certain of a class and half that it is not it.
    For sigmoids it is not ``entropy`` less ``expected_entropy``: each of these takes its own class.

    Args:
        evidence: of G clusters.

    Returns:
        (G,) float64 in [0, ln min(E, C + 1)], for sigmoids [0, ln 2], nats; higher = more disagreement.

    Source:
        Houlsby et al. 2011 (arXiv 1112.5745), equation 2 (BALD); the Jensen-Shannon divergence of the members
        (Lin 1991); an acquisition function of Chitta et al. 2019 (arXiv 1905.12737). Sigmoids:
        max_k [h(p̄_k) − (1/E) Σ_e h(p_ek)], the maximum over classes of Haussmann et al. 2020 (arXiv 2004.04699).

    Example:
        >>> from detcurate.score.evidence import gather_evidence
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
    if evidence.is_sigmoid:
        total = yes_no_entropy(evidence.mean_probs[:, :-1])
    else:
        total = entropy_of(evidence.mean_probs)[:, None]
    # It is 0 or more by Jensen's inequality; the difference of two rounded sums need not be.
    information: np.ndarray = np.maximum((total - evidence.own_entropies).max(axis=1), 0.0)
    return information


def variation_ratio(evidence: Evidence) -> np.ndarray:
    """Share of the members that do not find the commonest outcome the most probable, 1 − max_k v_k / E.

    0 when all have the same favourite, background included; 1 − 1/min(E, C + 1) when they are split evenly. Blind to
    how certain each is.

    Args:
        evidence: of G clusters.

    Returns:
        (G,) float64 in [0, 1); higher = more disagreement.

    Source:
        Freeman 1965; Gal et al. 2017 (arXiv 1703.02910), section 4.
    """
    ratio: np.ndarray = 1.0 - evidence.outcomes.max(axis=1) / evidence.num_answers
    return ratio


def vote_entropy(evidence: Evidence) -> np.ndarray:
    """Entropy of the members' favourites, −Σ_k (v_k/E) ln (v_k/E).

    0 when all have the same favourite, background included; ln min(E, C + 1) when they are split evenly.

    Args:
        evidence: of G clusters.

    Returns:
        (G,) float64 in [0, ln min(E, C + 1)], nats; higher = more disagreement.

    Source:
        Dagan and Engelson 1995.
    """
    return entropy_of(evidence.outcomes / evidence.num_answers[:, None])


def margin(evidence: Evidence) -> np.ndarray:
    """One less the lead of the consensus's first outcome over its second, 1 − (p̄_(1) − p̄_(2)).

    0 when the consensus is certain, 1 when two outcomes are equally probable. For sigmoids the outcomes are the C
    classes, and none of them with 1 less their maximum.

    Args:
        evidence: of G clusters.

    Returns:
        (G,) float64 in [0, 1]; higher = more uncertain.

    Source:
        Scheffer et al. 2001, turned round so that higher is less certain; Brust et al. 2019 (arXiv 1809.09875).
    """
    two = np.partition(evidence.mean_probs, -2, axis=1)[:, -2:]
    lack: np.ndarray = 1.0 - (two[:, 1] - two[:, 0])
    return lack
