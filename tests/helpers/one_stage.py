"""A one-stage detector for the mode ``dense``."""

RETINANET = (
    "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", "('p2','p3','p4','p5','p6')",
    "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.PRIOR_PROB", "0.3",
)  # fmt: skip
"""The words that put it in the place of the tiny config's two-stage one."""
