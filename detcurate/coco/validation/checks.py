"""What is checked of a COCO file's annotations, and how each finding is repaired where that is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from detcurate.coco.annotations import AnnotationColumns
from detcurate.coco.json_scanner import ABSENT_ID
from detcurate.coco.text import Records
from detcurate.coco.validation.findings import FindingLog, describe_errors
from detcurate.errors import DatasetError
from detcurate.io.safe_loading import is_absolute, leads_out

LARGEST_EXACT_FLOAT = 2**53
"""Above it, floats are not all integers."""


def check_categories(path: Path, ids: np.ndarray, names: Sequence[str], log: FindingLog) -> np.ndarray:
    """Return the rows of the categories to keep, by ascending id.

    Raises:
        DatasetError: There is none.
    """
    rows = _unique_rows(path, "category", ids, log)
    kept_names = Counter(names[row] for row in rows.tolist())
    twice = [name for name, count in kept_names.items() if count > 1]
    log.add_many(
        "duplicate_category_name",
        range(len(twice)),
        lambda at: f"category names must be unique, got {twice[at]!r} twice",
    )
    ascending = ids[rows]
    if len(ascending) and (ascending[0] != 1 or (np.diff(ascending) != 1).any()):
        shown = ", ".join(map(str, ascending[:12])) + (", …" if len(ascending) > 12 else "")
        log.add("category_id_gap", f"category ids are not 1 to {len(ascending)} but {shown}")
    return rows


def check_images(
    path: Path, positions: np.ndarray, ids: np.ndarray, file_names: Sequence[str], log: FindingLog
) -> np.ndarray:
    """Return the rows of the images to keep, by ascending id.

    Raises:
        DatasetError: There is none.
    """
    rows = _unique_rows(path, "image", ids, log)
    check_large(log, "images", positions, ids)
    names = [file_names[row] for row in rows.tolist()]
    counts = Counter(names)
    if len(counts) < len(names):
        twice = [name for name, count in counts.items() if count > 1]
        log.add_many(
            "duplicate_file_name",
            range(len(twice)),
            lambda at: f"{counts[twice[at]]} images have the file_name {twice[at]!r}",
        )
    for code, is_wrong in (("absolute_file_name", is_absolute), ("escaping_file_name", leads_out)):
        wrong = [row for row in rows.tolist() if is_wrong(file_names[row])]
        log.add_many(
            code,
            wrong,
            lambda row: (
                f"images[{positions[row]}].file_name must be relative and stay inside the image root, got "
                f"{file_names[row]!r} (id {ids[row]})"
            ),
        )
    return rows


def _unique_rows(path: Path, name: str, ids: np.ndarray, log: FindingLog) -> np.ndarray:
    """Return the rows by ascending id, the first of each."""
    if not len(ids):
        errors = [finding for finding in log.findings() if finding.policy == "error"]
        if errors:
            raise DatasetError(describe_errors(errors, path))
        raise DatasetError(f"the annotation file must have at least one {name}, got none ({path}); name another file")
    order = np.argsort(ids, kind="stable")
    first = np.ones(len(ids), bool)
    first[1:] = np.diff(ids[order]) != 0
    again = np.unique(ids[order[~first]])
    if len(again):
        shown = ", ".join(map(str, again[:3])) + (", …" if len(again) > 3 else "")
        example = f"{name} ids must be unique, got {shown} more than once"
        log.add(f"duplicate_{name}_id", example, int((~first).sum()))
    return order[first]


def check_large(log: FindingLog, name: str, positions: np.ndarray, ids: np.ndarray) -> None:
    """Report the ids that a reader of floats would mix up; ``ABSENT_ID`` is none."""
    large = np.flatnonzero(((ids > LARGEST_EXACT_FLOAT) | (ids < -LARGEST_EXACT_FLOAT)) & (ids != ABSENT_ID))
    log.add_many("large_id", large, lambda row: f"{name}[{positions[row]}].id is {ids[row]}, above 2^53")


_BORDER_PX = 1.0  # rounding a box outwards is common and harmless
_NORMALIZED_SHARE = 0.5
_DENSE = 8
_INVALID, _OUTSIDE, _PARTLY, _NORMALIZED = 1, 2, 3, 4


def check_annotations(
    records: Records,
    columns: AnnotationColumns,
    *,
    image_ids: np.ndarray,
    sizes: np.ndarray,
    category_ids: np.ndarray,
    log: FindingLog,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Check the annotations against the images and categories.

    Args:
        records: Their records, for messages.
        columns: What was read of them.
        image_ids: (I,) int64, ascending.
        sizes: (I, 2) int64, width and height, px.
        category_ids: (C,) int64, ascending.
        log: Takes the findings.

    Returns:
        The columns of ``CocoDataset``, by image, and its ``patched`` masks.
    """
    check = _AnnotationCheck(records, columns, log)
    image_index = check.references("image", columns.image, image_ids)
    class_index = check.references("category", columns.category, category_ids)
    ids = check.ids()
    boxes, areas, iscrowd = check.boxes(sizes, image_index)
    check.count_notes(image_index, len(image_ids))
    rows = order_by_image(image_index, np.flatnonzero(check.keep), len(image_ids))
    patched = {name: mask[rows] for name, mask in check.patched.items() if mask[rows].any()}
    data = {
        "annotation_ids": ids,
        "image_index": image_index,
        "class_index": class_index,
        "boxes": boxes,
        "areas": areas,
        "iscrowd": iscrowd,
        "annotation_positions": columns.positions,
    }
    del check, columns, ids, image_index, class_index, boxes, areas, iscrowd  # so that each is freed once it is sorted
    if len(rows) == len(data["image_index"]) and (np.diff(rows) == 1).all():
        return data, patched  # a file that is in order already
    # Rows exist: to clip them does nothing, but it spares numpy the check, which for boxes costs five times the copy.
    return {name: data.pop(name).take(rows, axis=0, mode="clip") for name in list(data)}, patched


class _AnnotationCheck:
    """The checks of one file's annotations; rows that a finding drops are taken out of ``keep``."""

    def __init__(self, records: Records, columns: AnnotationColumns, log: FindingLog) -> None:
        self._records, self._columns, self._log = records, columns, log
        n = len(columns.positions)
        self.keep = np.ones(n, bool)
        self.patched = {name: np.zeros(n, bool) for name in ("id", "iscrowd", "area", "bbox")}
        self.patched["bbox"] |= columns.boxed

    def references(self, name: str, wanted: np.ndarray, known_ids: np.ndarray) -> np.ndarray:
        """Return (A,) rows of the images or categories that the annotations name; drop those that name none."""
        index, unknown = _look_up(wanted, known_ids)
        unknown &= self.keep  # a record that is dropped is reported once
        self._log.add_many(
            f"unknown_{name}",
            np.flatnonzero(unknown),
            lambda row: (
                f"annotations[{self._position(row)}].{name}_id must be the id of one of the "
                f"{len(known_ids):,} {name} records, got {self._value(row, f'{name}_id')} (annotation id "
                f"{self._value(row, 'id')})"
            ),
        )
        self.keep &= ~unknown
        return index

    def boxes(self, sizes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (A, 4) xyxy boxes, (A,) areas, the box's where there is none, and (A,) crowd flags.

        The boxes are checked after the sum, which can round a tiny size away.
        """
        boxes, areas = self._columns.xywh, self._columns.areas
        no_area, no_crowd = np.isnan(areas), self._columns.iscrowd < 0
        with np.errstate(over="ignore", invalid="ignore"):
            areas[no_area] = boxes[no_area, 2:].prod(axis=1)
            boxes[:, 2:] += boxes[:, :2]
        flags = _box_flags(boxes, sizes, image_index, self.keep)
        invalid, outside, partly = (flags == flag for flag in (_INVALID, _OUTSIDE, _PARTLY))
        self._report_boxes("invalid_box", invalid, "must have a width and a height above 0")
        self._report_boxes("box_outside_image", outside, "must overlap its image")
        self._report_boxes("box_partly_outside", partly, "must lie inside its image")
        within = flags == _NORMALIZED
        if within.sum() > _NORMALIZED_SHARE * self.keep.sum():
            self._report_boxes("normalized_boxes", within, "must be in pixels, not in shares of the image")
        self.keep &= ~invalid
        if self._log.policy("box_outside_image") in ("error", "repair"):
            self.keep &= ~outside
        if self._log.repairs("box_partly_outside"):
            boxes[partly] = np.clip(boxes[partly], 0.0, np.tile(sizes[image_index[partly]], 2))
            self.patched["bbox"] |= partly
            cut = partly & no_area
            areas[cut] = (boxes[cut, 2:] - boxes[cut, :2]).prod(axis=1)
        for code, name, mask in (("missing_iscrowd", "iscrowd", no_crowd), ("missing_area", "area", no_area)):
            self._report(code, mask & self.keep, f"should have the field {name!r}, got none")
            if self._log.repairs(code):
                self.patched[name] |= mask
        return boxes, areas, self._columns.iscrowd == 1

    def ids(self) -> np.ndarray:
        """Return (A,) annotation ids, numbered where they are absent or repaired."""
        ids = self._columns.ids  # filled in, like the boxes
        numbered = ids == ABSENT_ID
        self._report("missing_id", numbered & self.keep, "must have the field 'id', got none")
        check_large(self._log, "annotations", self._columns.positions, ids)
        zero = self.keep & (ids == 0)
        self._report("annotation_id_zero", zero, "should not have id 0")
        rows = np.flatnonzero(self.keep & ~numbered)
        repeated, given = np.zeros(len(ids), bool), ids.take(rows, mode="clip")
        if (given[1:] <= given[:-1]).any():  # most files number their annotations in order
            order = rows[np.argsort(given, kind="stable")]
            repeated[order[1:][ids[order[1:]] == ids[order[:-1]]]] = True
        self._report("duplicate_annotation_id", repeated, "must have an id of its own")
        for code, mask in (
            ("missing_id", numbered),
            ("annotation_id_zero", zero),
            ("duplicate_annotation_id", repeated),
        ):
            if self._log.repairs(code):
                self.patched["id"] |= mask & self.keep
        new = numbered | self.patched["id"]
        if new.any():
            ids[new] = _free_ids(ids[~new], int(new.sum()))
        return ids

    def count_notes(self, image_index: np.ndarray, num_images: int) -> None:
        """Note crowd regions, images without boxes, and a file without any."""
        crowd = self.keep & (self._columns.iscrowd == 1)
        self._report("crowd_region", crowd, "is a crowd region")
        empty = num_images - int(np.count_nonzero(np.bincount(image_index[self.keep], minlength=num_images)))
        if not self.keep.any():
            self._log.add("no_annotations", "the file has no annotation that can be used")
        elif empty:
            self._log.add(
                "empty_image", f"{empty:,} of {num_images:,} images have no annotation that can be used", empty
            )

    def _report_boxes(self, code: str, mask: np.ndarray, constraint: str) -> None:
        self._log.add_many(
            code,
            np.flatnonzero(mask),
            lambda row: (
                f"annotations[{self._position(row)}].bbox {constraint}, got {self._value(row, 'bbox')} "
                f"(image_id {self._value(row, 'image_id')})"
            ),
        )

    def _report(self, code: str, mask: np.ndarray, what: str) -> None:
        self._log.add_many(
            code,
            np.flatnonzero(mask),
            lambda row: f"annotations[{self._position(row)}] {what} (image_id {self._value(row, 'image_id')})",
        )

    def _position(self, row: int) -> int:
        return int(self._columns.positions[row])

    def _value(self, row: int, key: str) -> Any:
        """Return what the file itself says, whatever it was read as."""
        return self._records.value(self._position(row)).get(key)


def _free_ids(used: np.ndarray, count: int) -> np.ndarray:
    """Return (count,) int64 ids from the highest one on, or the smallest that are free when it has no room above."""
    highest = int(used.max(initial=0))
    if highest + count < LARGEST_EXACT_FLOAT:
        return highest + 1 + np.arange(count)
    return np.setdiff1d(np.arange(1, len(used) + 2 * count + 1), used)[:count]


def _look_up(wanted: np.ndarray, known_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each wanted id stands among ascending ones (0 when nowhere), and whether it is unknown."""
    lowest, length = int(known_ids[0]), int(known_ids[-1]) - int(known_ids[0]) + 1
    if length <= _DENSE * len(known_ids):  # ids that are nearly contiguous, as most are: a table beats a search
        table = np.full(length + 1, -1, np.int64)
        table[known_ids - lowest] = np.arange(len(known_ids))
        is_inside = (wanted >= lowest) & (wanted < lowest + length)
        index = table[np.where(is_inside, wanted - lowest, length)]
        unknown = index < 0
        return np.where(unknown, 0, index), unknown
    index = np.searchsorted(known_ids, wanted).clip(max=len(known_ids) - 1)
    return index, known_ids[index] != wanted


@njit(cache=True)
def _box_flags(boxes, sizes, image_index, keep):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """(A,) uint8: what is wrong with each xyxy box of an image of (I, 2) ``sizes``; 0 when nothing is."""
    flags = np.zeros(len(boxes), np.uint8)
    for row in range(len(boxes)):
        if not keep[row]:
            continue
        x1, y1, x2, y2 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
        width, height = sizes[image_index[row], 0], sizes[image_index[row], 1]
        if not (np.isfinite(x1 + y1 + x2 + y2 + (x2 - x1) * (y2 - y1)) and x2 > x1 and y2 > y1):
            flags[row] = _INVALID
        elif x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            flags[row] = _OUTSIDE
        elif x1 < -_BORDER_PX or y1 < -_BORDER_PX or x2 > width + _BORDER_PX or y2 > height + _BORDER_PX:
            flags[row] = _PARTLY
        elif x1 >= 0 and y1 >= 0 and x2 <= 1 and y2 <= 1 and width > 2 and height > 2:
            flags[row] = _NORMALIZED
    return flags


@njit(cache=True)
def order_by_image(image_index, rows, num_images):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return (K,) int64: ``rows`` by ascending ``image_index``, those of one image in the order given."""
    place = np.zeros(num_images + 1, np.int64)
    for row in rows:
        place[image_index[row] + 1] += 1
    place = np.cumsum(place)
    ordered = np.empty(len(rows), np.int64)
    for row in rows:
        index = image_index[row]
        ordered[place[index]] = row
        place[index] += 1
    return ordered
