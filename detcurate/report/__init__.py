"""The report: the selection, the comparison of the arms, and their confidence intervals."""
