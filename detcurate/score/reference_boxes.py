"""The mode ``reference``: which boxes every member is asked about, and the disagreement of their answers.

There is no association and no missing answer: each reference box is one object, and all E members speak of it.
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
    """Return the boxes of one image to ask about: the labelled ones, and the consensus boxes that none of them covers.

    A consensus box that overlaps a labelled box by ``iou_threshold`` or more is taken for the same object, and the
    label is asked about. Boxes are clipped to the image; what has nothing inside it is left out.

    Args:
        truth: (T, 4) floating, xyxy in pixels, the labels without crowd regions.
        consensus: (K, 4) floating, likewise, of the members' clusters.
        size: Width and height of the image, px.
        iou_threshold: The least IoU to be the same object, in (0, 1]; that of the association.

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
    """Measure the disagreement of E members about R reference boxes; no box gives no object.

    Class measures are of the posteriors. Measures of the place are of the members' refined boxes; one whose sides are
    below a pixel, as that of a member that would put the object outside the image, is widened to a pixel, so that it
    has a size and hardly overlaps the others. ``num_fired`` counts the members whose most probable class is not the
    background; it may be 0.

    Args:
        image_ids: (R,) int64.
        boxes: (R, E, 4) float32, xyxy in pixels, refined by each member.
        class_probs: (R, E, C + 1) float32, rows that sum to 1, background last.
        measures: As in ``score_objects``.

    Returns:
        R objects in the order given; their box is the mean of the refined ones.

    Raises:
        ConfigError: A measure has no such name, none is given, or one compares members and there is one member.
        PredictionError: A row is no posterior, or a value is NaN or infinite.
    """
    r, e, columns = class_probs.shape
    validate_measures(measures, e, known=tuple(MEASURES))
    refined = _widen(boxes)
    foreground = class_probs[..., :-1].reshape(r * e, columns - 1)
    detections = Detections(
        image_ids=np.repeat(image_ids, e),
        member=np.tile(np.arange(e, dtype=np.int32), r),
        boxes=refined.reshape(r * e, 4),
        scores=np.minimum(foreground.max(axis=1), np.float32(1)),  # a softmax may round to a hair above 1
        class_index=foreground.argmax(axis=1).astype(np.int32),
        class_probs=class_probs.reshape(r * e, columns),
    )
    means = refined.mean(axis=1, dtype=np.float64).astype(np.float32)
    votes = np.arange(r * e, dtype=np.int64).reshape(r, e)
    objects = score_clusters(detections, Clusters(image_ids, means, votes), measures=measures)
    return replace(objects, num_fired=_num_seen(class_probs))


def _num_seen(class_probs: np.ndarray) -> np.ndarray:
    """(R,) int64: the members whose most probable class is not the background."""
    seen: np.ndarray = (class_probs.argmax(axis=2) < class_probs.shape[2] - 1).sum(axis=1, dtype=np.int64)
    return seen


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 4) float32: the boxes inside the image, without those that have no inside in that precision."""
    limits = np.array([*size, *size], np.float32)
    clipped = np.clip(boxes.reshape(-1, 4).astype(np.float32), np.float32(0), limits)
    inside: np.ndarray = clipped[(clipped[:, :2] < clipped[:, 2:]).all(axis=1)]
    return inside


def _widen(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) float32: sides below a pixel made a pixel long, about their middle."""
    lack = np.maximum(_LEAST_SIZE_PX - (boxes[..., 2:] - boxes[..., :2]), 0) / 2
    widened: np.ndarray = np.concatenate((boxes[..., :2] - lack, boxes[..., 2:] + lack), axis=-1)
    return widened
