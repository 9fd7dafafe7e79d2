"""COCO average precision of one model by pycocotools, with ids that it handles correctly."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detcurate.coco.dataset import CocoDataset
from detcurate.errors import PredictionError
from detcurate.structures import Detections
from detcurate.structures.boxes import xyxy_to_xywh

SIZES = {"small": "AP_small", "medium": "AP_medium", "large": "AP_large"}
"""The object sizes of ``pycocotools`` -> the names of their figures."""


@dataclass(frozen=True)
class MatchTable:
    """The matches of one model on one labelled set, at most 100 detections an image and class.

    Axes: N detections by class and then by descending score, T IoU thresholds, C classes, I images.

    Args:
        image_index: (N,) int64 in [0, I).
        class_index: (N,) int64 in [0, C), ascending.
        is_matched: (T, N) bool, whether the detection is matched to a ground-truth box at the threshold.
        is_ignored: (T, N) bool, whether the detection is ignored, such as one on a crowd region.
        num_labels: (I, C) int64, the ground-truth boxes that count.
        by_size: Figure in ``SIZES`` -> the table for objects of that size, without the detections that are ignored at
            every threshold.
    """

    image_index: np.ndarray
    class_index: np.ndarray
    is_matched: np.ndarray
    is_ignored: np.ndarray
    num_labels: np.ndarray
    by_size: Mapping[str, MatchTable] = field(default_factory=dict)

    @property
    def class_starts(self) -> np.ndarray:
        """(C + 1,) int64: the start of each class's detections."""
        return np.searchsorted(self.class_index, np.arange(self.num_labels.shape[1] + 1))


def match_table(evaluator: Any, num_images: int, num_classes: int) -> MatchTable:
    """Read the matches from a ``pycocotools`` evaluator after ``evaluate()``.

    Equal scores keep the order of ``COCOeval.accumulate``, so that the table reproduces its figures.
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
    """Return the table without the detections that are ignored at every threshold: those of other sizes."""
    kept = ~table.is_ignored.all(axis=0)
    return MatchTable(
        image_index=table.image_index[kept],
        class_index=table.class_index[kept],
        is_matched=table.is_matched[:, kept],
        is_ignored=table.is_ignored[:, kept],
        num_labels=table.num_labels,
    )


FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


@dataclass(frozen=True)
class CocoFigures:
    """COCO's box figures in percent, in [0, 100]; NaN where no labelled box counts for a figure.

    Args:
        AP: Mean over the classes and over IoU thresholds .50 to .95, at most 100 detections an image and class.
        AP50: At IoU threshold .50.
        AP75: At IoU threshold .75.
        AP_small: For objects of at most 32² px² (the annotation's ``area``).
        AP_medium: For objects of 32² to 96² px².
        AP_large: For objects of at least 96² px².
        per_class: Class name -> AP, in the order of ``class_index``.
        num_images: Images evaluated.
        num_boxes: Their annotations, crowd regions included.
    """

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    per_class: Mapping[str, float]
    num_images: int
    num_boxes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-serialisable values, NaN as None."""
        return {
            **{name: _none_for_nan(getattr(self, name)) for name in FIGURES},
            "per_class": {name: _none_for_nan(value) for name, value in self.per_class.items()},
            "num_images": self.num_images,
            "num_boxes": self.num_boxes,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CocoFigures:
        """Build the record from the result of :meth:`to_dict`."""
        return cls(
            **{name: _nan_for_none(values[name]) for name in FIGURES},
            per_class={name: _nan_for_none(value) for name, value in values["per_class"].items()},
            num_images=values["num_images"],
            num_boxes=values["num_boxes"],
        )


def evaluate_coco(dataset: CocoDataset, detections: Detections) -> tuple[CocoFigures, MatchTable]:
    """Evaluate the detections of one model on every image of a labelled set.

    Perfect detections give 100, no detections 0. pycocotools gets new ids, contiguous from 1, and complete records: it
    counts an annotation id 0 as unmatched, merges repeated ids, and fails on a missing ``iscrowd`` or ``area`` and on
    an empty list of detections.

    Args:
        dataset: The labels; their ``area`` determines the size class of an object.
        detections: N rows; ``member`` is ignored. Images without a row have no detections.

    Returns:
        The figures, and the table of matches.

    Raises:
        PredictionError: A detection is on an image outside the set, or the model has another number of classes.

    Source:
        https://cocodataset.org/#detection-eval; ``pycocotools.cocoeval``.
    """
    image_rows = _validate_detections(dataset, detections)
    num_classes = len(dataset.class_names)
    truth = _records(dataset.image_index, dataset.class_index, dataset.boxes)
    for record, area, iscrowd in zip(truth, dataset.areas.tolist(), dataset.iscrowd.tolist(), strict=True):
        record.update(area=area, iscrowd=int(iscrowd))
    found = _records(image_rows, detections.class_index, detections.boxes.astype(np.float64))
    for record, score in zip(found, detections.scores.tolist(), strict=True):
        record["score"] = score
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and its table
        evaluator = COCOeval(
            _coco(len(dataset), num_classes, truth), _coco(len(dataset), num_classes, found), iouType="bbox"
        )
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    figures = CocoFigures(
        **{name: _percent(value) for name, value in zip(FIGURES, evaluator.stats[: len(FIGURES)], strict=True)},
        per_class=dict(zip(dataset.class_names, _per_class(evaluator), strict=True)),
        num_images=len(dataset),
        num_boxes=dataset.num_boxes,
    )
    return figures, match_table(evaluator, len(dataset), num_classes)


def _validate_detections(dataset: CocoDataset, detections: Detections) -> np.ndarray:
    """Return the (N,) row of each detection's image."""
    unknown = np.setdiff1d(detections.image_ids, dataset.image_ids)
    if len(unknown):
        raise PredictionError(
            f"{dataset.path}: detections are on images that are not in this file (got image_id {unknown[0]}; "
            f"{len(unknown):,} unknown images). Evaluate on the file that was predicted."
        )
    if detections.num_classes != len(dataset.class_names):
        raise PredictionError(
            f"{dataset.path}: the file has {len(dataset.class_names)} classes (got a model with "
            f"{detections.num_classes}). Train and evaluate with the same categories."
        )
    return np.searchsorted(dataset.image_ids, detections.image_ids)


def _records(image_rows: np.ndarray, class_index: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any]]:
    """Return one COCO record per box; ids start at 1 because pycocotools treats a match with id 0 as unmatched."""
    xywh = xyxy_to_xywh(boxes).tolist()
    columns = zip((image_rows + 1).tolist(), (class_index + 1).tolist(), xywh, strict=True)
    return [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, (image, category, box) in enumerate(columns, start=1)
    ]


def _coco(num_images: int, num_classes: int, records: list[dict[str, Any]]) -> Any:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, num_images + 1)],
        "categories": [{"id": number} for number in range(1, num_classes + 1)],
        "annotations": records,
    }
    coco.createIndex()
    return coco


def _per_class(evaluator: Any) -> list[float]:
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # (thresholds, recalls, C), all sizes, 100 detections
    columns = [precision[:, :, index] for index in range(precision.shape[2])]
    return [_percent(float(column[column > -1].mean()) if (column > -1).any() else -1.0) for column in columns]


def _percent(value: float) -> float:
    # pycocotools returns -1 where there is no ground truth.
    return math.nan if value < 0 else 100.0 * float(value)


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan_for_none(value: float | None) -> float:
    return math.nan if value is None else float(value)
