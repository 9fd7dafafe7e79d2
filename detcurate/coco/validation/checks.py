"""Check the images, categories and annotations of a COCO file, and repair what the policies allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.coco import ABSENT_ID
from detcurate.coco.annotations import AnnotationColumns
from detcurate.coco.records import Records
from detcurate.coco.validation.findings import FindingLog, describe_errors
from detcurate.errors import DatasetError
from detcurate.io.safe_loading import is_absolute, leads_out

LARGEST_EXACT_FLOAT = 2**53
"""Above it, not every integer is a float."""

_BORDER_PX = 1.0  # boxes are often rounded outwards by up to a pixel, without harm
_NORMALIZED_SHARE = 0.5
_MAX_TABLE = 8  # entries of a look-up table per id
_BLOCK = 65_536  # rows that are checked at a time, so that the temporary arrays stay small
_INVALID, _OUTSIDE, _PARTLY, _NORMALIZED = 1, 2, 3, 4


def check_categories(path: Path, ids: np.ndarray, names: Sequence[str], log: FindingLog) -> np.ndarray:
    """Return the rows of the categories to keep, by ascending id.

    Raises:
        DatasetError: There is none.
    """
    rows = _unique_rows(path, "category", ids, log)
    counts = Counter(names[row] for row in rows.tolist())
    repeated = [name for name, count in counts.items() if count > 1]
    log.add_many(
        "duplicate_category_name",
        range(len(repeated)),
        lambda at: f"categories: name {repeated[at]!r} is not unique (got it {counts[repeated[at]]} times)",
    )
    ascending = ids[rows]
    if len(ascending) and (ascending[0] != 1 or (np.diff(ascending) != 1).any()):
        shown = ", ".join(map(str, ascending[:12])) + (", …" if len(ascending) > 12 else "")
        log.add("category_id_gap", f"categories: ids are not 1 to {len(ascending)} (got {shown})")
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
    if len(set(names)) < len(names):
        counts = Counter(names)
        repeated = [name for name, count in counts.items() if count > 1]
        log.add_many(
            "duplicate_file_name",
            range(len(repeated)),
            lambda at: f"images: file_name {repeated[at]!r} is not unique (got it {counts[repeated[at]]} times)",
        )
    for code, is_wrong, what in (
        ("absolute_file_name", is_absolute, "an absolute path"),
        ("escaping_file_name", leads_out, "a path outside the image root"),
    ):
        log.add_many(
            code,
            [row for row, name in zip(rows.tolist(), names, strict=True) if is_wrong(name)],
            lambda row, what=what: (
                f"images[{positions[row]}].file_name: {what} (got {file_names[row]!r}, id {ids[row]})"
            ),  # type: ignore[misc]
        )
    return rows


def _unique_rows(path: Path, name: str, ids: np.ndarray, log: FindingLog) -> np.ndarray:
    """Return the rows by ascending id, the first of each."""
    if not len(ids):
        errors = [finding for finding in log.findings() if finding.policy == "error"]
        if errors:
            raise DatasetError(describe_errors(errors, path))
        raise DatasetError(f"{path}: the annotation file has no {name} records (got 0). Name another file.")
    order = np.argsort(ids, kind="stable")
    first = np.ones(len(ids), bool)
    first[1:] = np.diff(ids[order]) != 0
    if not first.all():
        repeated = np.unique(ids[order[~first]])
        shown = ", ".join(map(str, repeated[:3])) + (", …" if len(repeated) > 3 else "")
        example = f"{name} ids are not unique (got {shown} more than once)"
        log.add(f"duplicate_{name}_id", example, int((~first).sum()))
    return order[first]


def check_large(log: FindingLog, name: str, positions: np.ndarray, ids: np.ndarray) -> None:
    """Report the ids that a reader of floats would confuse; ``ABSENT_ID`` is none."""
    if not len(ids) or (ids.min() >= -LARGEST_EXACT_FLOAT and ids.max() <= LARGEST_EXACT_FLOAT):
        return
    large = np.flatnonzero(((ids > LARGEST_EXACT_FLOAT) | (ids < -LARGEST_EXACT_FLOAT)) & (ids != ABSENT_ID))
    log.add_many("large_id", large, lambda row: f"{name}[{positions[row]}].id: above 2^53 (got {ids[row]})")


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
        columns: Their columns; overwritten.
        image_ids: (I,) int64, ascending.
        sizes: (I, 2) int64, width and height, px.
        category_ids: (C,) int64, ascending.
        log: Receives the findings.

    Returns:
        The columns of ``CocoDataset``, ordered by image, and its ``patched`` masks.
    """
    check = _AnnotationCheck(records, columns, log)
    image_index = check.references("image", columns.image, image_ids)
    class_index = check.references("category", columns.category, category_ids)
    ids = check.ids()
    boxes, areas, iscrowd = check.boxes(sizes, image_index)
    check.count_notes(image_index, len(image_ids))
    rows = order_by_image(image_index, np.flatnonzero(check.keep))
    patched = {name: mask[rows] for name, mask in check.patched.items() if mask.any() and mask[rows].any()}
    data = {
        "annotation_ids": ids,
        "image_index": image_index,
        "class_index": class_index,
        "boxes": boxes,
        "areas": areas,
        "iscrowd": iscrowd,
        "annotation_positions": columns.positions,
    }
    del check, columns, ids, image_index, class_index, boxes, areas, iscrowd  # each array is freed once it is sorted
    if len(rows) == len(data["image_index"]) and (np.diff(rows) == 1).all():
        return data, patched  # already in order
    # The rows exist: mode="clip" changes nothing, but skips a check that costs five times as much as copying boxes.
    return {name: data.pop(name).take(rows, axis=0, mode="clip") for name in list(data)}, patched


class _AnnotationCheck:
    """The checks of one file's annotations; dropped rows are False in ``keep``."""

    def __init__(self, records: Records, columns: AnnotationColumns, log: FindingLog) -> None:
        self._records, self._columns, self._log = records, columns, log
        n = len(columns.positions)
        self.keep = np.ones(n, bool)
        self.patched = {name: np.zeros(n, bool) for name in ("id", "iscrowd", "area")}
        self.patched["bbox"] = columns.boxed

    def references(self, name: str, ids: np.ndarray, known_ids: np.ndarray) -> np.ndarray:
        """Replace ids by the (A,) rows of the images or categories, in place, and drop the unknown ones."""
        unknown = _look_up(ids, known_ids)
        unknown &= self.keep  # a dropped record is reported once
        self._log.add_many(
            f"unknown_{name}",
            np.flatnonzero(unknown),
            lambda row: (
                f"annotations[{self._position(row)}].{name}_id: no such {name} (got {self._value(row, f'{name}_id')}, "
                f"annotation id {self._value(row, 'id')}, {len(known_ids):,} {name} records)"
            ),
        )
        self.keep &= ~unknown
        return ids

    def boxes(self, sizes: np.ndarray, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (A, 4) xyxy boxes, (A,) areas (of the box where absent), and (A,) crowd flags.

        The boxes are checked after the sum, which can round a tiny size away.
        """
        boxes, areas = self._columns.xywh, self._columns.areas
        no_area, no_crowd = np.isnan(areas), self._columns.iscrowd < 0
        with np.errstate(over="ignore", invalid="ignore"):
            if no_area.any():
                areas[no_area] = boxes[no_area, 2:].prod(axis=1)
            for start in range(0, len(boxes), _BLOCK):
                boxes[start : start + _BLOCK, 2:] += boxes[start : start + _BLOCK, :2]
        flags = _box_flags(boxes, sizes, image_index, self.keep)
        invalid, outside, partly = (flags == flag for flag in (_INVALID, _OUTSIDE, _PARTLY))
        self._report_boxes("invalid_box", invalid, "width or height not above 0")
        self._report_boxes("box_outside_image", outside, "outside its image")
        self._report_boxes("box_partly_outside", partly, "partly outside its image")
        normalized = flags == _NORMALIZED
        if normalized.sum() > _NORMALIZED_SHARE * self.keep.sum():
            self._report_boxes("normalized_boxes", normalized, "fractions of the image size, not pixels")
        self.keep &= ~invalid
        if self._log.policy("box_outside_image") in ("error", "repair"):
            self.keep &= ~outside
        if self._log.repairs("box_partly_outside"):
            boxes[partly] = np.clip(boxes[partly], 0.0, np.tile(sizes[image_index[partly]], 2))
            self.patched["bbox"] |= partly
            cut = partly & no_area
            areas[cut] = (boxes[cut, 2:] - boxes[cut, :2]).prod(axis=1)
        for code, name, mask in (("missing_iscrowd", "iscrowd", no_crowd), ("missing_area", "area", no_area)):
            self._report(code, mask & self.keep, f"missing field {name!r}")
            if self._log.repairs(code):
                self.patched[name] |= mask
        return boxes, areas, self._columns.iscrowd == 1

    def ids(self) -> np.ndarray:
        """Return (A,) annotation ids, numbered where they are absent or repaired."""
        ids = self._columns.ids  # overwritten, like the boxes
        numbered = ids == ABSENT_ID
        self._report("missing_id", numbered & self.keep, "missing field 'id'")
        check_large(self._log, "annotations", self._columns.positions, ids)
        zero = self.keep & (ids == 0)
        self._report("annotation_id_zero", zero, "id 0")
        repeated = np.zeros(len(ids), bool)
        if not (ids[1:] > ids[:-1]).all():  # most files number their annotations in order
            rows = np.flatnonzero(self.keep & ~numbered)
            order = rows[np.argsort(ids[rows], kind="stable")]
            repeated[order[1:][ids[order[1:]] == ids[order[:-1]]]] = True
        self._report("duplicate_annotation_id", repeated, "id is not unique")
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
        """Note crowd regions, images without boxes, and a file without annotations."""
        crowd = self.keep & (self._columns.iscrowd == 1)
        self._report("crowd_region", crowd, "crowd region")
        used = np.zeros(num_images, bool)
        used[image_index if self.keep.all() else image_index[self.keep]] = True
        empty = num_images - int(np.count_nonzero(used))
        if not self.keep.any():
            self._log.add("no_annotations", "no usable annotation in the file")
        elif empty:
            self._log.add("empty_image", f"{empty:,} of {num_images:,} images have no usable annotation", empty)

    def _report_boxes(self, code: str, mask: np.ndarray, what: str) -> None:
        self._log.add_many(
            code,
            np.flatnonzero(mask),
            lambda row: (
                f"annotations[{self._position(row)}].bbox: {what} (got {self._value(row, 'bbox')}, "
                f"image_id {self._value(row, 'image_id')})"
            ),
        )

    def _report(self, code: str, mask: np.ndarray, what: str) -> None:
        self._log.add_many(
            code,
            np.flatnonzero(mask),
            lambda row: f"annotations[{self._position(row)}]: {what} (image_id {self._value(row, 'image_id')})",
        )

    def _position(self, row: int) -> int:
        return int(self._columns.positions[row])

    def _value(self, row: int, key: str) -> Any:
        """Return the value in the file itself, before any conversion."""
        return self._records.value(self._position(row)).get(key)


def _free_ids(used: np.ndarray, count: int) -> np.ndarray:
    """Return (count,) int64 ids above the highest one, or the smallest unused ones if that leaves 53 bits."""
    highest = int(used.max(initial=0))
    if highest + count < LARGEST_EXACT_FLOAT:
        return highest + 1 + np.arange(count)
    return np.setdiff1d(np.arange(1, len(used) + 2 * count + 1), used)[:count]


def _look_up(ids: np.ndarray, known_ids: np.ndarray) -> np.ndarray:
    """Replace ids by their rows in ascending ``known_ids``, in place; return a mask of the unknown ones, of row 0."""
    lowest, length = int(known_ids[0]), int(known_ids[-1]) - int(known_ids[0]) + 1
    unknown = np.empty(len(ids), bool)
    table = None
    if length <= _MAX_TABLE * len(known_ids):  # ids are mostly almost contiguous: a table is faster than a search
        table = np.full(length + 1, -1, np.int64)
        table[known_ids - lowest] = np.arange(len(known_ids))
    for start in range(0, len(ids), _BLOCK):
        part = ids[start : start + _BLOCK]
        if table is None:
            index = np.searchsorted(known_ids, part).clip(max=len(known_ids) - 1)
            unknown[start : start + _BLOCK] = known_ids[index] != part
            part[:] = index
        else:
            is_inside = (part >= lowest) & (part < lowest + length)
            index = table[np.where(is_inside, part - lowest, length)]
            unknown[start : start + _BLOCK] = index < 0
            np.maximum(index, 0, out=part)
    return unknown


def _box_flags(boxes: np.ndarray, sizes: np.ndarray, image_index: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return (A,) uint8, the fault of each xyxy box in an image of (I, 2) ``sizes``; 0 where none or not kept."""
    flags = np.zeros(len(boxes), np.uint8)
    widths, heights = np.ascontiguousarray(sizes.T)
    for start in range(0, len(boxes), _BLOCK):
        block = slice(start, start + _BLOCK)
        x1, y1, x2, y2 = boxes[block].T
        width, height = widths[image_index[block]], heights[image_index[block]]
        # Common boxes meet none of the conditions below; NaN and infinity fail one of these.
        is_fine = (x1 >= 0) & (y1 >= 0) & (x2 > x1) & (y2 > y1) & (x2 > 1) & (y2 > 1)
        is_fine &= (x1 < width) & (y1 < height) & (x2 <= width + _BORDER_PX) & (y2 <= height + _BORDER_PX)
        rows = np.flatnonzero(~is_fine & keep[block])
        if not len(rows):
            continue
        x1, y1, x2, y2 = boxes[block][rows].T
        width, height = width[rows], height[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            is_finite = np.isfinite(x1 + y1 + x2 + y2 + (x2 - x1) * (y2 - y1))
        low, found = np.minimum(x1, y1), np.zeros(len(rows), np.uint8)
        found[(low >= 0) & (x2 <= 1) & (y2 <= 1) & (width > 2) & (height > 2)] = _NORMALIZED
        found[(low < -_BORDER_PX) | (x2 > width + _BORDER_PX) | (y2 > height + _BORDER_PX)] = _PARTLY
        found[(x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)] = _OUTSIDE
        found[~(is_finite & (x2 > x1) & (y2 > y1))] = _INVALID
        flags[start + rows] = found
    return flags


def order_by_image(image_index: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return (K,) int64: ``rows`` by ascending ``image_index``, those of one image in the order given."""
    index = image_index if len(rows) == len(image_index) else image_index[rows]
    if (index[1:] >= index[:-1]).all():
        return rows
    num_bits = len(rows).bit_length()
    if int(index.max()).bit_length() + num_bits > 63:
        return rows[np.argsort(index, kind="stable")]
    keys = index << num_bits  # image and rank in one integer: sorting these is ten times as fast as a stable argsort
    keys |= np.arange(len(rows))
    keys.sort()
    keys &= (1 << num_bits) - 1
    ordered: np.ndarray = rows[keys]
    return ordered
