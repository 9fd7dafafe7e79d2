"""Disagreement on whether there is an object at all."""

from __future__ import annotations

import numpy as np

from detcurate.structures import Clusters


def existence_entropy(clusters: Clusters) -> np.ndarray:
    """Entropy of the vote on existence, h(n/E) for n of E members that fired.

    0 when every member saw the object, ln 2 when half of them did; one of many is low again, for almost all agree
    that nothing is there. No cluster gives no value.

    Args:
        clusters: G clusters of E members.

    Returns:
        (G,) float64 in [0, ln 2], nats; higher = more disagreement.

    Source:
        Vote entropy (Dagan and Engelson 1995) of the two answers; h(v) = −v ln v − (1 − v) ln(1 − v).

    Example:
        >>> clusters = Clusters(np.array([7, 7]), np.zeros((2, 4)), np.array([[0, 1, 2, 3], [4, -1, -1, 5]]))
        >>> existence_entropy(clusters).round(4).tolist()
        [0.0, 0.6931]
    """
    share = clusters.num_fired / clusters.num_members
    shares = np.stack((share, 1.0 - share))
    terms = shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropies: np.ndarray = 0.0 - terms.sum(axis=0)  # not a bare minus, which would give -0.0
    return entropies
