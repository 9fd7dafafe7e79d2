"""Entropies of counts and of probabilities, with 0 ln 0 = 0."""

from __future__ import annotations

import numpy as np


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
