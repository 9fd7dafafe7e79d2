"""Disagreement on the class: entropies of the members' posteriors over a cluster.

A member with no detection in a cluster answers background with certainty, and the number of members E stands in
every denominator. Entropies are in nats. Higher means more disagreement for every measure here.

The detections' ``posterior_form`` decides what a measure is of: of one distribution over C + 1 outcomes for a softmax;
of C questions of yes or no for sigmoids, where a miss says no to each and the class with the highest value counts.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from detcurate.score.bernoulli import mean_class_entropies, mean_class_probs, yes_no_entropy
from detcurate.structures import Clusters, Detections


def consensus_probs(detections: Detections, clusters: Clusters) -> np.ndarray:
    """Average the members' posteriors over each cluster.

    Identical members give their own posterior; an object that one of E members saw has at least (E - 1)/E background.
    No cluster gives no row.

    Args:
        detections: N rows with posteriors over C classes and the background.
        clusters: G clusters of E members.

    Returns:
        (G, C + 1) float64, background last. Softmax: rows that sum to 1. Sigmoid: the mean of each class's
        probability, 0 for a miss, and in the last column 1 less their maximum.

    Raises:
        PredictionError: A vote names a row that the detections do not have.

    Source:
        Chitta et al. 2019 (arXiv 1905.12737): the ensemble's posterior is the mean of its members'; the miss as a
        vote for background is [ours].
    """
    clusters.validate_rows(detections)
    if detections.posterior_form == "sigmoid":
        foreground = mean_class_probs(detections.class_probs, clusters.votes)
        return np.column_stack((foreground, 1.0 - foreground.max(axis=1)))
    means: np.ndarray = _mean_posterior(detections.class_probs, clusters.votes)
    return means


def entropy(detections: Detections, clusters: Clusters) -> np.ndarray:
    """Entropy of the consensus, H(p̄): the total uncertainty, the doubt that all members share included.

    0 when all members are certain of the same class, ln(C + 1) when the consensus is uniform; for sigmoids ln 2 when
    the consensus on a class is 1/2. No cluster gives no value.

    Args:
        detections: N rows with posteriors over C classes and the background.
        clusters: G clusters of E members.

    Returns:
        (G,) float64 in [0, ln(C + 1)], for sigmoids [0, ln 2], nats; higher = more uncertain.

    Raises:
        PredictionError: A vote names a row that the detections do not have.

    Source:
        Shannon 1948; H(p̄) = −Σ_k p̄_k ln p̄_k. Sigmoids: max_k h(p̄_k), h(p) = −p ln p − (1 − p) ln(1 − p); binary
        entropies as in Brust et al. 2019 (arXiv 1809.09875), their maximum over classes as in Haussmann et al. 2020
        (arXiv 2004.04699).
    """
    consensus = consensus_probs(detections, clusters)
    if detections.posterior_form == "sigmoid":
        highest: np.ndarray = yes_no_entropy(consensus[:, :-1]).max(axis=1)
        return highest
    logarithms = np.log(consensus, out=np.zeros_like(consensus), where=consensus > 0)
    # Probabilities that round above 1 would give an entropy a hair below 0.
    entropies: np.ndarray = np.maximum(-(consensus * logarithms).sum(axis=1), 0.0)
    return entropies


def expected_entropy(detections: Detections, clusters: Clusters) -> np.ndarray:
    """Mean of the members' own entropies, (1/E) Σ_e H(p_e): the doubt that each member has by itself.

    0 when every member is certain, whatever of; ln(C + 1) when each is uniform, for sigmoids ln 2 when each gives a
    class 1/2. A miss is certain and adds 0. No cluster gives no value.

    Args:
        detections: N rows with posteriors over C classes and the background.
        clusters: G clusters of E members.

    Returns:
        (G,) float64 in [0, ln(C + 1)], for sigmoids [0, ln 2], nats; higher = the members are less certain.

    Raises:
        PredictionError: A vote names a row that the detections do not have.

    Source:
        Houlsby et al. 2011 (arXiv 1112.5745), equation 2, second term. Sigmoids: max_k (1/E) Σ_e h(p_ek), h as in
        ``entropy``.
    """
    clusters.validate_rows(detections)
    if detections.posterior_form == "sigmoid":
        highest: np.ndarray = mean_class_entropies(detections.class_probs, clusters.votes).max(axis=1)
        return highest
    means: np.ndarray = _mean_entropy(detections.class_probs, clusters.votes)
    return means


def mutual_information(detections: Detections, clusters: Clusters) -> np.ndarray:
    """Entropy of the consensus less the members' own, H(p̄) − (1/E) Σ_e H(p_e): what the members disagree on.

    0 when all members give the same posterior, certain or not; ln min(E, C + 1) when they are certain of as many
    different classes as there can be; for sigmoids ln 2 when half are certain of a class and half that it is not it.
    For sigmoids it is not ``entropy`` less ``expected_entropy``: each of these takes its own class. No cluster gives
    no value.

    Args:
        detections: N rows with posteriors over C classes and the background.
        clusters: G clusters of E members.

    Returns:
        (G,) float64 in [0, ln min(E, C + 1)], for sigmoids [0, ln 2], nats; higher = more disagreement.

    Raises:
        PredictionError: A vote names a row that the detections do not have.

    Source:
        Houlsby et al. 2011 (arXiv 1112.5745), equation 2 (BALD); the Jensen-Shannon divergence of the members
        (Lin 1991); an acquisition function of Chitta et al. 2019 (arXiv 1905.12737). Sigmoids:
        max_k [h(p̄_k) − (1/E) Σ_e h(p_ek)], the maximum over classes of Haussmann et al. 2020 (arXiv 2004.04699).

    Example:
        >>> pair = Detections(
        ...     image_ids=np.array([7, 7]),
        ...     member=np.array([0, 1]),
        ...     boxes=np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]]),
        ...     scores=np.array([1.0, 1.0]),
        ...     class_index=np.array([0, 1]),
        ...     class_probs=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        ... )
        >>> one_object = Clusters(np.array([7]), np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[0, 1]]))
        >>> mutual_information(pair, one_object).round(4).tolist()
        [0.6931]
    """
    if detections.posterior_form == "sigmoid":
        clusters.validate_rows(detections)
        total = yes_no_entropy(mean_class_probs(detections.class_probs, clusters.votes))
        own = mean_class_entropies(detections.class_probs, clusters.votes)
        highest: np.ndarray = np.maximum((total - own).max(axis=1), 0.0)
        return highest
    # It is 0 or more by Jensen's inequality; the difference of two rounded sums need not be.
    difference = entropy(detections, clusters) - expected_entropy(detections, clusters)
    information: np.ndarray = np.maximum(difference, 0.0)
    return information


# The kernels add up member by member: a (G, E, C + 1) array of a shard is gigabytes for large ensembles.
# Rows are renormalised in float64, for a float32 row is off by up to 1e-3 and an entropy of it would be too.


@njit(cache=True)
def _mean_posterior(class_probs, votes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """(G, C + 1) mean of the renormalised rows, a miss counting as a row of certain background."""
    num_members, num_columns = votes.shape[1], class_probs.shape[1]
    means = np.zeros((votes.shape[0], num_columns))
    for cluster in range(votes.shape[0]):
        for member in range(num_members):
            row = votes[cluster, member]
            if row < 0:
                means[cluster, num_columns - 1] += 1.0
                continue
            total = 0.0
            for column in range(num_columns):
                total += np.float64(class_probs[row, column])
            for column in range(num_columns):
                means[cluster, column] += class_probs[row, column] / total
    return means / num_members


@njit(cache=True)
def _mean_entropy(class_probs, votes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """(G,) mean of the entropies of the renormalised rows, a miss adding 0."""
    num_members, num_columns = votes.shape[1], class_probs.shape[1]
    means = np.zeros(votes.shape[0])
    for cluster in range(votes.shape[0]):
        for member in range(num_members):
            row = votes[cluster, member]
            if row < 0:
                continue
            total = 0.0
            for column in range(num_columns):
                total += np.float64(class_probs[row, column])
            for column in range(num_columns):
                probability = class_probs[row, column] / total
                if probability > 0.0:
                    means[cluster] -= probability * np.log(probability)
    return means / num_members
