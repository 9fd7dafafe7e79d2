"""The ground truth, as scoring is given it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detcurate.errors import PredictionError
from detcurate.structures.validation import validate_column, validate_rows

_COLUMNS = ("image_ids", "annotation_ids", "boxes", "class_index", "iscrowd")


@dataclass(frozen=True)
class Labels:
    """The ground-truth boxes of a set of images, one row a box.

    Args:
        image_ids: (J,) int64, the image of each box.
        annotation_ids: (J,) int64.
        boxes: (J, 4) floating, xyxy in absolute pixels, with x1 < x2 and y1 < y2.
        class_index: (J,) int64 in [0, C).
        iscrowd: (J,) bool, whether the box is a region of many objects rather than one.

    Raises:
        PredictionError: A column has another shape, kind or range than stated.
    """

    image_ids: np.ndarray
    annotation_ids: np.ndarray
    boxes: np.ndarray
    class_index: np.ndarray
    iscrowd: np.ndarray

    def __post_init__(self) -> None:
        j = len(self.image_ids)
        columns: tuple[tuple[str, tuple[int | str, ...], str], ...] = (
            ("image_ids", (j,), "i"),
            ("annotation_ids", (j,), "i"),
            ("boxes", (j, 4), "f"),
            ("class_index", (j,), "i"),
            ("iscrowd", (j,), "b"),
        )
        for name, shape, kind in columns:
            validate_column("Labels", name, getattr(self, name), shape, kind, PredictionError)
        has_area = np.all(self.boxes[:, :2] < self.boxes[:, 2:], axis=1)
        validate_rows("Labels", "boxes", has_area, self.boxes, "have x1 < x2 and y1 < y2", self.image_ids)
        validate_rows("Labels", "class_index", self.class_index >= 0, self.class_index, "be at least 0", self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, rows: np.ndarray) -> Labels:
        """Return the rows that an index array or a mask names."""
        return type(self)(**{name: getattr(self, name)[rows] for name in _COLUMNS})
