"""Read COCO files and validate them."""

ABSENT_ID = -(2**63)
"""Placeholder for an absent id, and for a reference to nothing."""

ABSENT_FLAG = -1
"""Placeholder for an absent ``iscrowd``."""
