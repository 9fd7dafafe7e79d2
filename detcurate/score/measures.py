"""The measures by name. To add one: write its function, and give it a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from detcurate.score.classification import entropy, expected_entropy, mutual_information
from detcurate.score.existence import existence_entropy
from detcurate.score.localization import box_std, iou_dispersion
from detcurate.structures import Clusters, Detections

Measure = Callable[[Detections, Clusters], np.ndarray]
"""From detections and G clusters of them to (G,) float64; higher = more disagreement, 0 = none."""

MEASURES: Mapping[str, Measure] = {
    "mutual_information": mutual_information,
    "entropy": entropy,
    "expected_entropy": expected_entropy,
    "iou_dispersion": iou_dispersion,
    "box_std": box_std,
    "existence_entropy": lambda detections, clusters: existence_entropy(clusters),
}

SINGLE_MEMBER_MEASURES = ("entropy", "expected_entropy")
"""The measures that an ensemble of one can have; the others compare members."""
