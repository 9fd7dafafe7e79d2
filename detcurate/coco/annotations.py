"""Read the annotations of a COCO file into columns, plain ones with a compiled scanner if the file is large."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import msgspec
import numpy as np

from detcurate.coco import ABSENT_FLAG, ABSENT_ID
from detcurate.coco.decode import (
    AnnotationRecord,
    BoxedRecord,
    IdTable,
    decode_block,
    decode_one_by_one,
    int64_column,
    report_texts,
)
from detcurate.coco.records import Records, find_records, repays_compiled, scan_list
from detcurate.coco.text import Source
from detcurate.coco.validation.findings import FindingLog


@dataclass(frozen=True)
class AnnotationColumns:
    """The readable annotations of a file, in its order.

    Args:
        positions: (A,) int64, the position of each in the file's list.
        ids: (A,) int64, ``ABSENT_ID`` where absent.
        image: (A,) int64, the id of its image, ``ABSENT_ID`` where that refers to no image.
        category: (A,) int64, likewise.
        xywh: (A, 4) float64, px, not yet checked.
        areas: (A,) float64, NaN where absent.
        iscrowd: (A,) int8, -1 where absent.
        boxed: (A,) bool, whether the box was computed from the segmentation.
    """

    positions: np.ndarray
    ids: np.ndarray
    image: np.ndarray
    category: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray
    iscrowd: np.ndarray
    boxed: np.ndarray

    def take(self, rows: np.ndarray) -> AnnotationColumns:
        """Return the annotations of some rows, an index array or a mask."""
        return AnnotationColumns(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})


def find_annotations(
    source: Source, top_level: dict[str, msgspec.Raw]
) -> tuple[Records, AnnotationColumns, np.ndarray]:
    """Locate the annotations; in a large file, also read the plain ones in the same scan.

    Returns:
        The records; columns with a row for each of them, without values where unread; and (A,) bool, which were read.

    Raises:
        DatasetError: As :func:`detcurate.coco.records.find_records`.
    """
    integers, floats = np.empty(0, np.int64), np.empty(0)
    types = (np.empty(0, bool), integers, integers, integers, np.empty((0, 4)), floats, np.empty(0, np.int8))
    if repays_compiled(len(source.content)):
        from detcurate.coco.json_scanner import read_elements

        records, filled = scan_list(source, "annotations", top_level, read_elements, types)
    else:
        records = find_records(source, "annotations", top_level)
        filled = [np.zeros((len(records), *column.shape[1:]), column.dtype) for column in types]
    read, ids, image, category, xywh, areas, iscrowd = filled
    n = len(records)
    positions, boxed = np.arange(n), np.zeros(n, bool)
    return records, AnnotationColumns(positions, ids, image, category, xywh, areas, iscrowd, boxed), read


def read_annotations(
    records: Records,
    columns: AnnotationColumns,
    read: np.ndarray,
    images: IdTable,
    categories: IdTable,
    log: FindingLog,
) -> AnnotationColumns:
    """Read the records that :func:`find_annotations` left unread, and replace text ids by numbers.

    Args:
        records: From :func:`find_annotations`, like ``columns`` and ``read``, which are written.
        columns: One row a record.
        read: (A,) bool.
        images: The numbers of the images' ids.
        categories: The numbers of the categories' ids.
        log: Receives the findings.

    Returns:
        The columns without the rows that could not be read.
    """
    for ids, table in ((columns.image, images), (columns.category, categories)):
        ids[...] = table.integers(ids)
    texts: dict[int, str | int] = {}  # position -> an id that is not a 64-bit integer
    if not read.all():
        for start, stop in records.ranges():
            texts |= _fill(records, columns, read, range(start, stop), images, categories, log)
    if not read.all():
        columns = columns.take(np.flatnonzero(read))
    if texts:
        values = {int(np.searchsorted(columns.positions, position)): text for position, text in texts.items()}
        given = sorted({*np.flatnonzero(columns.ids != ABSENT_ID).tolist(), *values})
        columns.ids[given] = IdTable.of([values.get(row, int(columns.ids[row])) for row in given])[1]
    return columns


def _fill(
    records: Records,
    columns: AnnotationColumns,
    read: np.ndarray,
    block: range,
    images: IdTable,
    categories: IdTable,
    log: FindingLog,
) -> dict[int, str | int]:
    """Read the unread records of a block; return the ids that are not integers, by position."""
    unread = block.start + np.flatnonzero(~read[block.start : block.stop])
    if not len(unread):
        return {}
    if len(unread) > len(block) / 2:  # decoding the whole block at once is faster than most of it one by one
        read[block.start : block.stop] = False
        kept, decoded = decode_block(records, block, AnnotationRecord, log)
    else:
        kept, decoded = decode_one_by_one(records, unread, AnnotationRecord, log)
    typed, texts = _typed_columns(kept, decoded, images, categories, log)
    for column in fields(columns):
        getattr(columns, column.name)[kept] = getattr(typed, column.name)
    read[kept] = True
    return texts


def _typed_columns(
    kept: np.ndarray, block: list[AnnotationRecord], images: IdTable, categories: IdTable, log: FindingLog
) -> tuple[AnnotationColumns, dict[int, str | int]]:
    """Return decoded records as columns, and the ids that are not integers, by position."""
    texts: dict[int, str | int] = {}
    numbers = int64_column([record.id for record in block], lowest=ABSENT_ID)
    if numbers is None:
        values = [ABSENT_ID if record.id is None else record.id for record in block]
        given = [row for row, value in enumerate(values) if value != ABSENT_ID]
        report_texts("annotations", "id", kept[given], [values[row] for row in given], log)
        texts = {row: value for row, value in enumerate(values) if int64_column([value], lowest=ABSENT_ID) is None}
        numbers = np.array([ABSENT_ID if row in texts else value for row, value in enumerate(values)], np.int64)
    flags = [ABSENT_FLAG if record.iscrowd is None else record.iscrowd for record in block]
    sides = itertools.chain.from_iterable([record.bbox for record in block])
    columns = AnnotationColumns(
        positions=kept,
        ids=numbers,
        image=_reference_numbers("image_id", kept, [record.image_id for record in block], images, log),
        category=_reference_numbers("category_id", kept, [record.category_id for record in block], categories, log),
        xywh=np.fromiter(sides, np.float64, 4 * len(block)).reshape(-1, 4),
        areas=np.array([record.area for record in block], np.float64),  # None becomes NaN
        iscrowd=np.array(flags, np.int8),
        boxed=np.array([isinstance(record, BoxedRecord) for record in block], bool),
    )
    return columns, {int(kept[row]): text for row, text in texts.items()}


def _reference_numbers(
    key: str, positions: np.ndarray, values: Sequence[int | str], table: IdTable, log: FindingLog
) -> np.ndarray:
    if int64_column(values) is None:
        report_texts("annotations", key, positions, values, log)
    return table.numbers(values)
