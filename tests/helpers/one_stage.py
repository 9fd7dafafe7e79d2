"""A one-stage detector for the mode ``dense``."""

RETINANET = (
    "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", "('p2','p3','p4','p5','p6')",
    "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.PRIOR_PROB", "0.3",
)  # fmt: skip
"""Overrides that replace the two-stage detector of the tiny config."""
