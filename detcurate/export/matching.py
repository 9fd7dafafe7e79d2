"""Which corrected label was which label of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detcurate.boxes import box_iou

SAME_PX = 0.05
"""Boxes whose corners differ by less are one: CVAT rounds to hundredths of a pixel, others to millionths of a share."""

_SAME_OBJECT = 0.5


@dataclass(frozen=True)
class Matching:
    """What became of one image's labels.

    Args:
        unchanged: Rows of the pool's labels that are as they were.
        changed: Pairs of a row of the pool's labels and one of the corrected ones.
        added: Rows of the corrected labels.
        removed: Rows of the pool's labels.
    """

    unchanged: tuple[int, ...]
    changed: tuple[tuple[int, int], ...]
    added: tuple[int, ...]
    removed: tuple[int, ...]


def match_labels(
    boxes: np.ndarray,
    class_index: np.ndarray,
    keys: Sequence[str],
    corrected_boxes: np.ndarray,
    corrected_class_index: np.ndarray,
    corrected_keys: Sequence[str],
) -> Matching:
    """Find the label that each corrected one was, in three rounds, each label once.

    First equal box and class, the same id before others; then the same id with any overlap (tools that number anew
    would else change one object into another); then the greatest IoU of at least 0.5.

    Args:
        boxes: (n, 4) float64, xyxy px, of the pool.
        class_index: (n,) int64.
        keys: n texts, their ids.
        corrected_boxes: (m, 4) float64.
        corrected_class_index: (m,) int64.
        corrected_keys: m texts; an empty one is of no label.

    Returns:
        Every row once. No label gives only added ones, no corrected one only removed ones.

    Example:
        >>> before, after = np.array([[0, 0, 9, 9.0]]), np.array([[0, 0, 9, 8.0]])
        >>> match_labels(before, np.array([1]), ["7"], after, np.array([1]), [""])
        Matching(unchanged=(), changed=((0, 0),), added=(), removed=())
    """
    shape = (len(boxes), len(corrected_boxes))
    apart = np.abs(boxes[:, None] - corrected_boxes[None]).max(axis=2, initial=0)
    same_class = class_index[:, None] == corrected_class_index[None]
    same_key = np.array([[key == other != "" for other in corrected_keys] for key in keys], bool).reshape(shape)
    iou = box_iou(boxes, corrected_boxes)
    rounds = (
        np.where((apart <= SAME_PX) & same_class, 1.0 + same_key, 0.0),
        np.where(same_key, iou, 0.0),
        np.where(iou >= _SAME_OBJECT, iou, 0.0),
    )
    partner = np.full(shape[0], -1)
    is_taken = np.zeros(shape[1], bool)
    unchanged: tuple[int, ...] = ()
    for number, weight in enumerate(rounds):
        _take_greatest(weight, partner, is_taken)
        if number == 0:
            unchanged = tuple(np.flatnonzero(partner >= 0).tolist())
    changed = tuple((row, int(partner[row])) for row in np.flatnonzero(partner >= 0).tolist() if row not in unchanged)
    return Matching(
        unchanged=unchanged,
        changed=changed,
        added=tuple(np.flatnonzero(~is_taken).tolist()),
        removed=tuple(np.flatnonzero(partner < 0).tolist()),
    )


def _take_greatest(weight: np.ndarray, partner: np.ndarray, is_taken: np.ndarray) -> None:
    """Pair rows and columns that are free, the greatest weight first, ties by row; 0 is no pair. In place."""
    rows, columns = np.nonzero(weight)
    for at in np.argsort(-weight[rows, columns], kind="stable").tolist():
        row, column = rows[at], columns[at]
        if partner[row] < 0 and not is_taken[column]:
            partner[row], is_taken[column] = column, True
