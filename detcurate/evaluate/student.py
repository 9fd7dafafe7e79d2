"""Student's t, for intervals over a few training seeds."""

from __future__ import annotations

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom. With two seeds the factor is 12.7, not 2: to claim at
# two standard errors what two seeds show would be wrong three times in ten.
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def t_95(degrees_of_freedom: int) -> float:
    """Return how many standard errors a 95 % interval reaches to each side; above 30 degrees that of 30.

    Example:
        >>> t_95(1), t_95(9)
        (12.706, 2.262)
    """
    return _T_95[min(degrees_of_freedom, len(_T_95)) - 1]
