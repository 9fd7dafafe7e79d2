"""Disagreement on whether there is an object at all."""

from __future__ import annotations

import numpy as np

from detcurate.score.entropies import yes_no_entropy
from detcurate.score.evidence import Evidence


def existence_entropy(evidence: Evidence) -> np.ndarray:
    """Entropy of the vote on existence, h(n/E) for n of E members that fired.

    0 when every member saw the object, ln 2 when half of them did; one of many is low again, for almost all agree
    that nothing is there. No cluster gives no value.

    Args:
        evidence: of G clusters.

    Returns:
        (G,) float64 in [0, ln 2], nats; higher = more disagreement.

    Source:
        Vote entropy (Dagan and Engelson 1995) of the two answers; h(v) = −v ln v − (1 − v) ln(1 − v).
    """
    return yes_no_entropy(evidence.num_fired / evidence.num_members)
