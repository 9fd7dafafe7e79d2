"""Sigmoid posteriors: each class is a question of its own, answered yes with probability p and no with 1 - p.

A miss answers no to every class with certainty: p = 0, and no entropy.
"""

from __future__ import annotations

import numpy as np
from numba import njit


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
    entropies: np.ndarray = _yes_no_entropies(np.ascontiguousarray(probs, np.float64).reshape(-1)).reshape(probs.shape)
    return entropies


def mean_class_probs(class_probs: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Average each class's probability over the members of each cluster, (1/E) Σ_e p_ek.

    Args:
        class_probs: (N, C + 1) floating sigmoid rows, the background last.
        votes: (G, E) integers, rows of ``class_probs`` or -1 for a miss.

    Returns:
        (G, C) float64 in [0, 1].
    """
    means: np.ndarray = _mean_class_probs(class_probs, votes)
    return means


def mean_class_entropies(class_probs: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Average the members' own entropies for each class of each cluster, (1/E) Σ_e h(p_ek).

    Args:
        class_probs: (N, C + 1) floating sigmoid rows, the background last.
        votes: (G, E) integers, rows of ``class_probs`` or -1 for a miss.

    Returns:
        (G, C) float64 in [0, ln 2], nats.
    """
    means: np.ndarray = _mean_class_entropies(class_probs, votes)
    return means


@njit(cache=True)
def _entropy(probability):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    if probability <= 0.0 or probability >= 1.0:
        return 0.0
    rest = 1.0 - probability
    return -probability * np.log(probability) - rest * np.log(rest)


@njit(cache=True)
def _yes_no_entropies(probs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    entropies = np.empty(len(probs))
    for place in range(len(probs)):
        entropies[place] = _entropy(probs[place])
    return entropies


@njit(cache=True)
def _mean_class_probs(class_probs, votes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    num_members, num_classes = votes.shape[1], class_probs.shape[1] - 1
    means = np.zeros((votes.shape[0], num_classes))
    for cluster in range(votes.shape[0]):
        for member in range(num_members):
            row = votes[cluster, member]
            if row >= 0:
                for column in range(num_classes):
                    means[cluster, column] += np.float64(class_probs[row, column])
    return means / num_members


@njit(cache=True)
def _mean_class_entropies(class_probs, votes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    num_members, num_classes = votes.shape[1], class_probs.shape[1] - 1
    means = np.zeros((votes.shape[0], num_classes))
    for cluster in range(votes.shape[0]):
        for member in range(num_members):
            row = votes[cluster, member]
            if row >= 0:
                for column in range(num_classes):
                    means[cluster, column] += _entropy(np.float64(class_probs[row, column]))
    return means / num_members
