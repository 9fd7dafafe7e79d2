"""Disagreement on whether there is an object at all."""

from __future__ import annotations

import numpy as np

from detcurate.score.entropies import yes_no_entropy
from detcurate.score.evidence import Evidence


def existence_entropy(evidence: Evidence) -> np.ndarray:
    """Entropy of the vote on existence, h(v/E) for v of E members that find an object the most probable.

    0 when all members find one, or none does; ln 2 when half of them do. A member whose most probable outcome is the
    background votes against, as one without a detection does: a detector's floor is low (0.05), and where detections
    of any score counted, the many hypotheses near it would have ln 2 and every image would be as good as another. For
    sigmoids an object is the most probable when a class has 1/2 or more. No cluster gives no value.

    Args:
        evidence: of G clusters.

    Returns:
        (G,) float64 in [0, ln 2], nats; higher = more disagreement.

    Source:
        Vote entropy (Dagan and Engelson 1995) of the two answers; h(v) = −v ln v − (1 − v) ln(1 − v).
    """
    return yes_no_entropy(evidence.outcomes[:, :-1].sum(axis=1) / evidence.num_members)
