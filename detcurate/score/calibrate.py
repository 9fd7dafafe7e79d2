"""Calibration with one temperature per member, so that confidences of different members are comparable.

Early checkpoints are less certain than late ones, so an uncalibrated mean is dominated by the late ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from detcurate.errors import PredictionError
from detcurate.score.label_measures import gather_label_statistics
from detcurate.structures import Detections, Labels

_SMALLEST = 1e-7  # float32 resolution of a probability near 1
_TEMPERATURES = (0.05, 20.0)
_STEPS = 60
_GOLDEN = (np.sqrt(5.0) - 1) / 2


@dataclass(frozen=True)
class Calibration:
    """The temperature of each member, and the calibration error on images that it was not fitted on.

    Args:
        temperatures: (E,) float64 above 0; above 1 makes a member less certain, 1 changes nothing.
        error_before: (E,) float64 in [0, 1], the expected calibration error of the original confidences.
        error_after: (E,) float64 in [0, 1], the expected calibration error with the temperatures.
    """

    temperatures: np.ndarray
    error_before: np.ndarray
    error_after: np.ndarray


def calibrate(
    detections: Detections, labels: Labels, *, num_members: int, iou_threshold: float = 0.5, seed: int = 0
) -> Calibration:
    """Fit each member's temperature on one half of the images, and measure the calibration error on the other half.

    A member without detections on the first half keeps the temperature 1.

    Args:
        detections: N rows of all members on some images.
        labels: The ground truth of these images.
        num_members: E.
        iou_threshold: In (0, 1], for the match of detections to labels.
        seed: Seed of the split into halves.

    Raises:
        PredictionError: There are fewer than two images, or as ``gather_label_statistics``.

    Source:
        Guo et al. 2017 (arXiv 1706.04599), temperature scaling.
    """
    image_ids = np.union1d(detections.image_ids, labels.image_ids)
    if len(image_ids) < 2:
        raise PredictionError(
            f"CURATE.SCORE.CALIBRATION_IMAGES: calibration needs at least two images (got {len(image_ids)})"
        )
    chosen = np.random.default_rng(seed).permutation(image_ids)[: len(image_ids) // 2]
    outcome = detection_outcomes(detections, labels, num_members=num_members, iou_threshold=iou_threshold)
    is_fitted = np.isin(detections.image_ids, chosen)
    temperatures, before, after = np.ones(num_members), np.zeros(num_members), np.zeros(num_members)
    for member in range(num_members):
        rows = np.flatnonzero(is_fitted & (detections.member == member))
        others = detections.take(np.flatnonzero(~is_fitted & (detections.member == member)))
        other_outcome = outcome[~is_fitted & (detections.member == member)]
        temperatures[member] = fit_temperature(detections.take(rows), outcome[rows])
        is_right = others.class_index == other_outcome
        before[member] = expected_calibration_error(others.scores, is_right)
        scaled = apply_temperatures(others, temperatures)
        after[member] = expected_calibration_error(scaled.scores, is_right)
    return Calibration(temperatures, before, after)


def detection_outcomes(
    detections: Detections, labels: Labels, *, num_members: int, iou_threshold: float = 0.5
) -> np.ndarray:
    """Return (N,) int64: the class of the label that each detection is matched to, C for none."""
    predictions = gather_label_statistics(detections, labels, num_members=num_members, iou_threshold=iou_threshold)
    classes = labels.class_index[~labels.iscrowd]
    outcome = np.full(len(detections), detections.num_classes)
    label, member = np.nonzero(predictions.votes >= 0)
    outcome[predictions.votes[label, member]] = classes[label]
    return outcome


def fit_temperature(detections: Detections, outcome: np.ndarray) -> float:
    """Return the temperature with the lowest negative log-likelihood of the outcomes; 1 without detections.

    Args:
        detections: N rows.
        outcome: (N,) integers in [0, C], C for the background.

    Returns:
        A temperature in [0.05, 20].
    """
    if not len(detections):
        return 1.0
    low, high = np.log(_TEMPERATURES)
    for _ in range(_STEPS):  # golden section: the loss has one minimum in the logarithm of the temperature
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if _loss(detections, outcome, np.exp(left)) < _loss(detections, outcome, np.exp(right)):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def apply_temperatures(detections: Detections, temperatures: Sequence[float] | np.ndarray) -> Detections:
    """Return the detections with posteriors and scores scaled by the temperature of their member.

    Softmax: p_k^(1/T) / Σ p^(1/T), which is the softmax of the logits divided by T. Sigmoid: the logit of each class is
    divided by T.

    Args:
        detections: N rows of E members.
        temperatures: (E,) above 0.
    """
    scale = np.asarray(temperatures, np.float64)[detections.member]
    class_probs = _at_temperature(detections, scale[:, None]).astype(np.float32)
    rows = np.arange(len(detections))
    return replace(detections, class_probs=class_probs, scores=class_probs[rows, detections.class_index])


def expected_calibration_error(confidence: np.ndarray, is_right: np.ndarray, *, num_bins: int = 15) -> float:
    """Return the mean difference of confidence and accuracy over bins of equal width, weighted by size; 0 if empty.

    Args:
        confidence: (N,) floating in [0, 1].
        is_right: (N,) bool.
        num_bins: At least 1.

    Returns:
        A number in [0, 1].

    Source:
        Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599), equation 3.

    Example:
        >>> expected_calibration_error(np.array([0.9, 0.9, 0.1]), np.array([True, False, False])).__round__(3)
        0.3
    """
    if not len(confidence):
        return 0.0
    bins = np.minimum((np.asarray(confidence, np.float64) * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(bins, weights=confidence, minlength=num_bins) - np.bincount(
        bins, weights=is_right, minlength=num_bins
    )
    return float(np.abs(gaps).sum() / len(confidence))


def _loss(detections: Detections, outcome: np.ndarray, temperature: float) -> float:
    probs = np.clip(_at_temperature(detections, temperature), _SMALLEST, 1 - _SMALLEST)
    rows = np.arange(len(detections))
    if detections.posterior_form == "softmax":
        return -float(np.log(probs[rows, outcome]).sum())
    foreground = probs[:, :-1]
    is_class = outcome[:, None] == np.arange(detections.num_classes)
    return -float(np.log(np.where(is_class, foreground, 1 - foreground)).sum())


def _at_temperature(detections: Detections, temperature: float | np.ndarray) -> np.ndarray:
    probs = np.clip(detections.class_probs.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    if detections.posterior_form == "softmax":
        logits = np.log(probs) / temperature
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scaled: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return scaled
    foreground = probs[:, :-1]
    scaled = 1.0 / (1.0 + np.exp(-np.log(foreground / (1 - foreground)) / temperature))
    return np.column_stack((scaled, 1.0 - scaled.max(axis=1)))
