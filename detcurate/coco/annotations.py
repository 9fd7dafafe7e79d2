"""The annotations of a COCO file as columns: the plain ones read from the text, the others typed or one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import msgspec
import numpy as np

from detcurate.coco.decode import (
    AnnotationRecord,
    BoxedRecord,
    IdTable,
    decode_block,
    decode_one_by_one,
    int64_column,
    report_texts,
)
from detcurate.coco.json_scanner import ABSENT_FLAG, ABSENT_ID, find_elements, read_elements
from detcurate.coco.text import CHUNK, Records, Source, decode_as, got_kind, offset_of, require_depth
from detcurate.coco.validation.findings import FindingLog
from detcurate.errors import DatasetError

_ROOM = 65_536  # records that there is room for before the length of a record is known


def find_records(source: Source, name: str, top_level: dict[str, msgspec.Raw]) -> Records:
    """Find the elements of a top-level list.

    Raises:
        DatasetError: There is no such key, its value is not a list, or lists are nested in it more than 200 deep.
    """
    return walk_list(source, name, top_level, find_elements, ())[0]


def decode_list(source: Source, name: str) -> Records:
    """Check the whole text's syntax and find the elements of the list that it is.

    Args:
        source: The file.
        name: What the list is called in messages.

    Raises:
        DatasetError: The text is not JSON (with line and column), not a list, or nested more than 200 deep.
    """
    return find_records(source, name, {name: decode_as(source, msgspec.Raw)})


def walk_list(
    source: Source,
    name: str,
    top_level: dict[str, msgspec.Raw],
    walk: Callable[..., int],
    columns: Sequence[np.ndarray],
) -> tuple[Records, list[np.ndarray]]:
    """Find the elements of a top-level list and fill columns on the way.

    Args:
        source: The file.
        name: The key of the list.
        top_level: From :func:`decode_top_level`.
        walk: A function like :func:`detcurate.coco.json_scanner.find_elements` that takes the columns after the spans.
        columns: Arrays of the columns' types and of any length.

    Returns:
        The records, and the columns with one row a record.

    Raises:
        DatasetError: As :func:`find_records`.
    """
    text = _list_text(source, name, top_level)
    characters, state, count = np.frombuffer(text, np.uint8), np.array([1, 1], np.int64), 0
    filled = _longer([np.empty((0, 2), np.int64), *columns], 0, _ROOM)
    while state[0] < len(text):
        if count == len(filled[0]):  # as many as there will be if the others are as long; memory not used costs none
            expected = int(1.1 * count * len(text) / state[0])
            filled = _longer(filled, count, max(expected, count + count // 2 + 1))
        count = walk(characters, min(int(state[0]) + CHUNK, len(text)), state, count, *filled)
        source.release()
    require_depth(source, text, int(state[1]))
    spans, *filled = (column[:count] for column in filled)
    spans += offset_of(source, text)
    return Records(name, source, spans), filled


def _longer(columns: Sequence[np.ndarray], count: int, length: int) -> list[np.ndarray]:
    """Return columns with room for more rows, the first ``count`` filled."""
    longer = [np.empty((length, *column.shape[1:]), column.dtype) for column in columns]
    for new, old in zip(longer, columns, strict=True):
        new[:count] = old[:count]
    return longer


def _list_text(source: Source, name: str, top_level: dict[str, msgspec.Raw]) -> memoryview:
    if name not in top_level:
        raise DatasetError(
            f"the {source.kind} must have the key {name!r}, got the keys {list(top_level)} ({source.path}); "
            "export it as COCO detection JSON"
        )
    text = memoryview(top_level[name])
    if bytes(text[:1]) != b"[":
        kind = got_kind(top_level[name])
        raise DatasetError(f"{name} must be a list, got {kind} ({source.path}); export it as COCO detection JSON")
    return text


@dataclass(frozen=True)
class AnnotationColumns:
    """The annotations of a file, in its order, those that could not be read left out.

    Args:
        positions: (A,) int64, where in the file's list each stands.
        ids: (A,) int64, ``ABSENT_ID`` where there is none.
        image: (A,) int64, the id of its image, ``ABSENT_ID`` where that names nothing.
        category: (A,) int64, likewise.
        xywh: (A, 4) float64, px, not yet checked.
        areas: (A,) float64, NaN where there is none.
        iscrowd: (A,) int8, -1 where there is none.
        boxed: (A,) bool, whether the box was taken from the segmentation.
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
        """Return some of the annotations."""
        return AnnotationColumns(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})


def find_annotations(
    source: Source, top_level: dict[str, msgspec.Raw]
) -> tuple[Records, AnnotationColumns, np.ndarray]:
    """Find the annotations and read the plain ones in the same walk.

    Returns:
        The records; columns with a row for each of them, that of an unread one still to be filled; and (A,) bool,
        which were read.

    Raises:
        DatasetError: As :func:`detcurate.coco.annotations.find_records`.
    """
    integers, floats = np.empty(0, np.int64), np.empty(0)
    types = (np.empty(0, bool), integers, integers, integers, np.empty((0, 4)), floats, np.empty(0, np.int8))
    records, filled = walk_list(source, "annotations", top_level, read_elements, types)
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
    """Read what :func:`find_annotations` left unread, and number the ids that are texts.

    Args:
        records: From :func:`find_annotations`, as the next two, which are filled in.
        columns: One row a record.
        read: (A,) bool.
        images: The numbers of the images' ids.
        categories: The numbers of the categories' ids.
        log: Takes the findings.

    Returns:
        The columns without the rows that could not be read.
    """
    for ids, table in ((columns.image, images), (columns.category, categories)):
        ids[...] = table.integers(ids)
    texts: dict[int, str | int] = {}  # position -> an id that is not an integer of 64 bits
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
    """Read the unread records of a block; return the ids that are no integers, by position."""
    unread = block.start + np.flatnonzero(~read[block.start : block.stop])
    if not len(unread):
        return {}
    if len(unread) > len(block) / 2:  # most are not plain, and the typed decoder does better with all of them
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
    """Return decoded records as columns, and the ids that are no integers, by position."""
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
