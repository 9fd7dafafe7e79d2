"""The measures by name. To add one: write its function of the evidence, and give it a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from detcurate.score.cluster_statistics import ClusterStatistics
from detcurate.score.disagreement import (
    box_std,
    entropy,
    existence_entropy,
    expected_entropy,
    iou_dispersion,
    margin,
    mutual_information,
    variation_ratio,
    vote_entropy,
)
from detcurate.score.label_measures import (
    LabelStatistics,
    el2n,
    error_count,
    forgetting,
    low_confidence,
    prediction_variance,
    variability,
)

Measure = Callable[[ClusterStatistics], np.ndarray]
"""From the evidence on G clusters to (G,) float64; higher = more disagreement, 0 = none."""

LabelMeasure = Callable[[LabelStatistics], np.ndarray]
"""From the evidence on J ground-truth boxes to (J,) float64; higher = harder, 0 = all members are right."""

MEASURES: Mapping[str, Measure] = {
    "mutual_information": mutual_information,
    "entropy": entropy,
    "expected_entropy": expected_entropy,
    "variation_ratio": variation_ratio,
    "vote_entropy": vote_entropy,
    "margin": margin,
    "iou_dispersion": iou_dispersion,
    "box_std": box_std,
    "existence_entropy": existence_entropy,
}

LABEL_MEASURES: Mapping[str, LabelMeasure] = {
    "error_count": error_count,
    "el2n": el2n,
    "forgetting": forgetting,
    "low_confidence": low_confidence,
    "variability": variability,
    "prediction_variance": prediction_variance,
}

SINGLE_MEMBER_MEASURES = ("entropy", "expected_entropy", "margin", "error_count", "el2n", "low_confidence")
"""The measures that an ensemble of one can have; the others compare members."""


def available_measures(num_members: int) -> tuple[str, ...]:
    """Return the names of all measures that an ensemble of this size can have."""
    names = (*MEASURES, *LABEL_MEASURES)
    return names if num_members > 1 else tuple(name for name in names if name in SINGLE_MEMBER_MEASURES)
