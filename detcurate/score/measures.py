"""The measures by name, and their description for tables. docs/contributing/add-a-measure.md says how to add one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
"""Function of the statistics of G clusters that returns (G,) float64; higher = more disagreement, 0 = none."""

LabelMeasure = Callable[[LabelStatistics], np.ndarray]
"""Function of the statistics of J ground-truth boxes that returns (J,) float64; higher = more difficult."""

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
"""The measures that are defined for an ensemble of one member; the others compare members."""


def available_measures(num_members: int) -> tuple[str, ...]:
    """Return the names of all measures that are defined for an ensemble of this size."""
    names = (*MEASURES, *LABEL_MEASURES)
    return names if num_members > 1 else tuple(name for name in names if name in SINGLE_MEMBER_MEASURES)


@dataclass(frozen=True)
class MeasureDescription:
    """One row of the table of measures, from the docstring of the measure.

    Args:
        name: A name in ``MEASURES`` or ``LABEL_MEASURES``.
        meaning: One sentence with the formula.
        value_range: Such as ``"in [0, 1]"``.
        higher: The meaning of a higher value.
        needs_labels: Whether it uses the labels.
        needs_members: Whether it compares members, so that it needs two or more.
        source: The publications.
    """

    name: str
    meaning: str
    value_range: str
    higher: str
    needs_labels: bool
    needs_members: bool
    source: str


def describe_measure(name: str) -> MeasureDescription:
    """Return the description of a measure, from its docstring.

    Example:
        >>> describe_measure("variability").value_range
        'in [0, 1/2]'
    """
    function = MEASURES[name] if name in MEASURES else LABEL_MEASURES[name]
    sentence, *rest = str(function.__doc__).strip().split("\n")
    sections = re.split(r"\n    (Returns|Source|Example|Args):\n", "\n".join(rest))
    of = {title: " ".join(text.split()) for title, text in zip(sections[1::2], sections[2::2], strict=True)}
    value_range, _, higher = of["Returns"].partition("; higher = ")
    meaning = sentence.removeprefix("Return ")
    return MeasureDescription(
        name=name,
        meaning=meaning[0].upper() + meaning[1:],
        value_range=re.sub(r"^\([GJ],\) float64,? ", "", value_range),
        higher=higher.rstrip("."),
        needs_labels=name in LABEL_MEASURES,
        needs_members=name not in SINGLE_MEMBER_MEASURES,
        source=of["Source"],
    )


def describe_measures() -> tuple[MeasureDescription, ...]:
    """Return the descriptions of all measures, first those without labels."""
    return tuple(describe_measure(name) for name in (*MEASURES, *LABEL_MEASURES))
