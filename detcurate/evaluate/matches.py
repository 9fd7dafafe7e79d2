"""Which detections were right: what COCO's average precision is counted from, kept image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SIZES = {"small": "AP_small", "medium": "AP_medium", "large": "AP_large"}
"""The object sizes of ``pycocotools`` -> the figures that are about them."""


@dataclass(frozen=True)
class MatchTable:
    """The matches of one model on one labelled set, at most 100 detections an image and class.

    Axes: N detections by class and then by descending score, T IoU thresholds, C classes, I images.

    Args:
        image_index: (N,) int64 in [0, I).
        class_index: (N,) int64 in [0, C), ascending.
        is_matched: (T, N) bool, whether the detection took a ground-truth box at the threshold.
        is_ignored: (T, N) bool, whether it counts for nothing, such as one on a crowd region.
        num_labels: (I, C) int64, the ground-truth boxes that count.
        by_size: Figure -> the same for the objects of one size, for those in ``SIZES``; of the detections those that
            count at one threshold at least.
    """

    image_index: np.ndarray
    class_index: np.ndarray
    is_matched: np.ndarray
    is_ignored: np.ndarray
    num_labels: np.ndarray
    by_size: Mapping[str, MatchTable] = field(default_factory=dict)

    @property
    def class_starts(self) -> np.ndarray:
        """(C + 1,) int64: where each class's detections begin."""
        return np.searchsorted(self.class_index, np.arange(self.num_labels.shape[1] + 1))


def match_table(evaluator: Any, num_images: int, num_classes: int) -> MatchTable:
    """Read the matches from a ``pycocotools`` evaluator that has evaluated.

    Equal scores keep the order that ``COCOeval.accumulate`` gives them, so that its figures can be had again.
    """
    names = evaluator.params.areaRngLbl
    by_size = {
        figure: _counting(MatchTable(**_columns(evaluator, num_images, num_classes, names.index(size))))
        for size, figure in SIZES.items()
    }
    return MatchTable(**_columns(evaluator, num_images, num_classes, names.index("all")), by_size=by_size)


def _columns(evaluator: Any, num_images: int, num_classes: int, area: int) -> dict[str, Any]:
    thresholds, areas = len(evaluator.params.iouThrs), len(evaluator.params.areaRng)
    num_labels = np.zeros((num_images, num_classes), np.int64)
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for c in range(num_classes):
        found = [
            (image, entry)
            for image, entry in enumerate(evaluator.evalImgs[(c * areas + area) * num_images :][:num_images])
            if entry is not None
        ]
        for image, entry in found:
            num_labels[image, c] = int((np.asarray(entry["gtIgnore"]) == 0).sum())
        scores = np.concatenate([np.zeros(0), *(entry["dtScores"] for _, entry in found)])
        order = np.argsort(-scores, kind="mergesort")
        images = np.repeat([image for image, _ in found], [len(entry["dtScores"]) for _, entry in found])
        empty = np.zeros((thresholds, 0), np.bool_)
        matched = np.concatenate([empty, *(entry["dtMatches"] > 0 for _, entry in found)], axis=1)
        ignored = np.concatenate([empty, *(entry["dtIgnore"] > 0 for _, entry in found)], axis=1)
        columns.append((images[order], np.full(len(order), c), matched[:, order], ignored[:, order]))
    return {
        "image_index": np.concatenate([images for images, *_ in columns]).astype(np.int64),
        "class_index": np.concatenate([classes for _, classes, *_ in columns]).astype(np.int64),
        "is_matched": np.concatenate([matched for _, _, matched, _ in columns], axis=1),
        "is_ignored": np.concatenate([ignored for *_, ignored in columns], axis=1),
        "num_labels": num_labels,
    }


def _counting(table: MatchTable) -> MatchTable:
    """Return the table without the detections that count for nothing at any threshold: those of other sizes."""
    kept = ~table.is_ignored.all(axis=0)
    return MatchTable(
        image_index=table.image_index[kept],
        class_index=table.class_index[kept],
        is_matched=table.is_matched[:, kept],
        is_ignored=table.is_ignored[:, kept],
        num_labels=table.num_labels,
    )
