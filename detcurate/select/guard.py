"""The noise guard: the images whose labels are most suspicious leave before anything is ranked."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from detcurate.errors import SelectionError


def suspicious_rows(suspicion: np.ndarray, *, quantile: float) -> np.ndarray:
    """Return the rows above a quantile of suspicion, the most suspicious first; ties by row.

    Their number is the pool's share above the quantile, a half rounded up, but no image without any suspicion is among
    them: a clean pool loses none.

    Args:
        suspicion: (I,) float64, at least 0; higher = a label is more likely wrong.
        quantile: in [0, 1]; 0.95 gives the top 5 %, 1 none.

    Returns:
        (g,) int64 rows.

    Raises:
        SelectionError: The quantile is out of range, or a suspicion is negative or not finite.

    Example:
        >>> suspicious_rows(np.array([0.1, 0.9, 0.0, 0.9]), quantile=0.5).tolist()
        [1, 3]
    """
    if not 0 <= quantile <= 1:
        raise SelectionError(f"guard_quantile must be in [0, 1], got {quantile}; 0.95 guards against the top 5 %")
    if not (suspicion >= 0).all() or not np.isfinite(suspicion).all():
        raise SelectionError("suspicion must be at least 0 and finite, got another value; score the pool again")
    share = (1 - Decimal(repr(float(quantile)))) * len(suspicion)
    order = np.lexsort((np.arange(len(suspicion)), -suspicion))[: int(share.to_integral_value(ROUND_HALF_UP))]
    return order[suspicion[order] > 0]
