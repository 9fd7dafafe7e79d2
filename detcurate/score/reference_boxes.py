"""The mode ``reference``: boxes that every member classifies, and the disagreement of the members about them.

It needs no association and has no misses: each reference box is one object with a prediction of each of E members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detcurate.score.measures import MEASURES
from detcurate.score.scoring import score_clusters, validate_measures
from detcurate.structures import Clusters, Detections, ObjectScores
from detcurate.structures.boxes import box_iou

_LEAST_SIZE_PX = 1.0


def choose_references(
    truth: np.ndarray, consensus: np.ndarray, *, size: tuple[int, int], iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the reference boxes of one image: the labelled boxes, and consensus boxes without a label.

    A consensus box with an IoU of at least ``iou_threshold`` with a labelled box is the same object, and the labelled
    box is used. Boxes are clipped to the image; boxes outside it are dropped.

    Args:
        truth: (T, 4) floating, xyxy in pixels, the labels without crowd regions.
        consensus: (K, 4) floating, xyxy in pixels, the boxes of the members' clusters.
        size: Width and height of the image, px.
        iou_threshold: The smallest IoU of the same object, in (0, 1]; that of the association.

    Returns:
        (R, 4) float32 boxes, the labelled ones first, and (R,) bool, whether each is labelled.

    Example:
        >>> truth = np.array([[0.0, 0.0, 8.0, 8.0]])
        >>> consensus = np.array([[0.0, 0.0, 8.0, 7.0], [20.0, 20.0, 50.0, 30.0]])
        >>> boxes, is_truth = choose_references(truth, consensus, size=(40, 40), iou_threshold=0.5)
        >>> boxes.tolist(), is_truth.tolist()
        ([[0.0, 0.0, 8.0, 8.0], [20.0, 20.0, 40.0, 30.0]], [True, False])
    """
    truth, consensus = (_clip(boxes, size) for boxes in (truth, consensus))
    is_new = (box_iou(consensus, truth) < iou_threshold).all(axis=1)  # of no labels all
    consensus = consensus[is_new]
    return np.concatenate((truth, consensus)), np.repeat([True, False], [len(truth), len(consensus)])


def score_references(
    image_ids: np.ndarray, boxes: np.ndarray, class_probs: np.ndarray, *, measures: Sequence[str]
) -> ObjectScores:
    """Measure the disagreement of E members about R reference boxes.

    Class measures use the posteriors, box measures the members' refined boxes. Sides below a pixel are widened to one
    pixel: a member that moves the box outside the image gives such a box, which then barely overlaps the others.
    ``num_fired`` counts the members with another most probable class than background; it may be 0.

    Args:
        image_ids: (R,) int64.
        boxes: (R, E, 4) float32, xyxy in pixels, refined by each member.
        class_probs: (R, E, C + 1) float32, rows that sum to 1, background last.
        measures: See ``score_objects``.

    Returns:
        R objects in the given order; their box is the mean of the refined boxes.

    Raises:
        ConfigError: A measure is unknown, none is given, or a measure compares members and there is one member.
        PredictionError: A row is not a posterior, or a value is NaN or infinite.
    """
    r, e, columns = class_probs.shape
    validate_measures(measures, e, known=tuple(MEASURES))
    refined = _widen(boxes)
    foreground = class_probs[..., :-1].reshape(r * e, columns - 1)
    detections = Detections(
        image_ids=np.repeat(image_ids, e),
        member=np.tile(np.arange(e, dtype=np.int32), r),
        boxes=refined.reshape(r * e, 4),
        scores=np.minimum(foreground.max(axis=1), np.float32(1)),  # a softmax may round to slightly above 1
        class_index=foreground.argmax(axis=1).astype(np.int32),
        class_probs=class_probs.reshape(r * e, columns),
    )
    means = refined.mean(axis=1, dtype=np.float64).astype(np.float32)
    votes = np.arange(r * e, dtype=np.int64).reshape(r, e)
    objects = score_clusters(detections, Clusters(image_ids, means, votes), measures=measures)
    return replace(objects, num_fired=_num_seen(class_probs))


def _num_seen(class_probs: np.ndarray) -> np.ndarray:
    """Return (R,) int64, the number of members with another most probable class than background."""
    seen: np.ndarray = (class_probs.argmax(axis=2) < class_probs.shape[2] - 1).sum(axis=1, dtype=np.int64)
    return seen


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (N, 4) float32, the boxes clipped to the image, without those of zero size in float32."""
    limits = np.array([*size, *size], np.float32)
    clipped = np.clip(boxes.reshape(-1, 4).astype(np.float32), np.float32(0), limits)
    inside: np.ndarray = clipped[(clipped[:, :2] < clipped[:, 2:]).all(axis=1)]
    return inside


def _widen(boxes: np.ndarray) -> np.ndarray:
    """Return (..., 4) float32, boxes with sides below a pixel widened to one pixel about their centre."""
    lack = np.maximum(_LEAST_SIZE_PX - (boxes[..., 2:] - boxes[..., :2]), 0) / 2
    widened: np.ndarray = np.concatenate((boxes[..., :2] - lack, boxes[..., 2:] + lack), axis=-1)
    return widened
