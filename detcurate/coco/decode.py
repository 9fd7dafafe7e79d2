"""From the records of a COCO file to columns: typed, many at a time, and one by one only where something is wrong."""

from __future__ import annotations

import itertools
import json
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from detcurate.coco.fast import parse_annotations
from detcurate.coco.findings import FindingLog
from detcurate.coco.segmentation import box_of_segmentation
from detcurate.coco.source import Records

ABSENT_ID = -(2**63)
"""Stands for an id that a record does not have, or that names nothing."""

_ABSENT_FLAG = -1
_Length = Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]
_Id = int | str

# What each field must be, in the words of the error message.
_CONSTRAINTS = {
    "id": "an integer or a text",
    "image_id": "an integer or a text",
    "category_id": "an integer or a text",
    "bbox": "four finite numbers [x, y, width, height]",
    "area": "a finite number of at least 0",
    "iscrowd": "0 or 1",
    "file_name": "a text",
    "width": "an integer above 0",
    "height": "an integer above 0",
    "sequence": "a text or an integer",
    "frame_index": "an integer of at least 0",
    "name": "a text",
}


class ImageRecord(msgspec.Struct, gc=False):
    """What is read of an image."""

    id: _Id
    file_name: str
    width: _Length
    height: _Length
    sequence: str | int | None = None
    frame_index: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class AnnotationRecord(msgspec.Struct, gc=False):
    """What is read of an annotation."""

    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    id: _Id | None = ABSENT_ID
    area: Annotated[float, msgspec.Meta(ge=0)] | None = None
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] | bool | None = _ABSENT_FLAG


class CategoryRecord(msgspec.Struct, gc=False):
    """What is read of a category."""

    id: _Id
    name: str


_ANNOTATIONS = msgspec.json.Decoder(list[AnnotationRecord])
_Record = TypeVar("_Record", ImageRecord, AnnotationRecord, CategoryRecord)


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


@dataclass
class IdTable:
    """Numbers for the ids of one kind: integers are themselves, texts get the smallest numbers that are free.

    A text that is written like an integer is that integer: annotations often say "41" where the image says 41.
    """

    named: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Sequence[int | str]) -> tuple[IdTable, np.ndarray]:
        """Return the table of all ids of one kind, and the (n,) int64 numbers of the values."""
        if (numbers := _int64(values)) is not None:
            return cls(), numbers
        used = {number for value in values if (number := _as_number(value)) is not None}
        texts = sorted({str(value) for value in values if _as_number(value) is None})
        free = (number for number in itertools.count(1) if number not in used)
        table = cls(dict(zip(texts, free)))  # noqa: B905  the numbers never end
        return table, table.numbers(values)

    def numbers(self, values: Sequence[int | str]) -> np.ndarray:
        """Return (n,) int64 numbers, ``ABSENT_ID`` for what names nothing: a text, or the number of another text."""
        if (numbers := _int64(values)) is not None:
            return self.integers(numbers)
        integers = [_as_number(value) for value in values]
        is_integer = np.array([number is not None for number in integers])
        texts = (self.named.get(str(value), ABSENT_ID) for value in values)
        pairs = zip(integers, texts, strict=True)
        numbers = np.array([text if number is None else number for number, text in pairs], np.int64)
        numbers[is_integer] = self.integers(numbers[is_integer])
        return numbers

    def integers(self, numbers: np.ndarray) -> np.ndarray:
        """Return int64 ids of the file as numbers: ``ABSENT_ID`` for one that stands for a text inside."""
        if not self.named:
            return numbers
        return np.where(np.isin(numbers, list(self.named.values())), ABSENT_ID, numbers)


def read_records(records: Records, kind: type[_Record], log: FindingLog) -> tuple[np.ndarray, list[_Record]]:
    """Decode a whole list; return the (n,) positions and the records of those that could be read."""
    decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    positions: list[np.ndarray] = []
    decoded: list[_Record] = []
    for start, stop in records.ranges():
        try:
            block, kept = decoder.decode(records.block(start, stop)), np.arange(start, stop)
        except msgspec.ValidationError:
            kept, block = _decode_one_by_one(records, range(start, stop), kind, log)  # type: ignore[arg-type]
        positions.append(kept)
        decoded += block
    return np.concatenate(positions) if positions else np.zeros(0, np.int64), decoded


def read_annotations(records: Records, images: IdTable, categories: IdTable, log: FindingLog) -> AnnotationColumns:
    """Decode the annotations block by block into columns, so that memory does not follow the file."""
    n = len(records)
    columns = AnnotationColumns(
        positions=np.empty(n, np.int64),
        ids=np.empty(n, np.int64),
        image=np.empty(n, np.int64),
        category=np.empty(n, np.int64),
        xywh=np.empty((n, 4)),
        areas=np.empty(n),
        iscrowd=np.empty(n, np.int8),
        boxed=np.zeros(n, bool),
    )
    texts: dict[int, str | int] = {}  # row -> an id that is not an integer of 64 bits
    content, end = np.frombuffer(records.source.content, np.uint8), 0
    for start, stop in records.ranges():
        block = _plain_block(content, records, start, stop, images, categories)
        if block is None:
            block = _block_of(*_decode_block(records, start, stop, log), images, categories, log)
        elif len(block.unread):
            block = block.joined(
                _block_of(*_decode_one_by_one(records, block.unread, AnnotationRecord, log), images, categories, log)
            )
        rows = slice(end, end + len(block.columns.positions))
        for name in AnnotationColumns.__annotations__:
            getattr(columns, name)[rows] = getattr(block.columns, name)
        texts.update({end + row: text for row, text in block.texts.items()})
        end = rows.stop
    if end < n:
        columns = AnnotationColumns(
            **{name: getattr(columns, name)[:end] for name in AnnotationColumns.__annotations__}
        )
    if texts:
        given = np.flatnonzero(columns.ids != ABSENT_ID).tolist()
        given = sorted({*given, *texts})
        columns.ids[given] = IdTable.of([texts.get(row, int(columns.ids[row])) for row in given])[1]
    return columns


@dataclass(frozen=True)
class _Block:
    """Some annotations as columns, the ids that are no integers by row, and the positions that are still to be read."""

    columns: AnnotationColumns
    texts: dict[int, str | int]
    unread: np.ndarray

    def joined(self, other: _Block) -> _Block:
        """Return both blocks as one, by position."""
        names = AnnotationColumns.__annotations__
        both = {name: np.concatenate((getattr(self.columns, name), getattr(other.columns, name))) for name in names}
        order = np.argsort(both["positions"], kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        shift = len(self.columns.positions)
        texts = {int(place[row + shift]): text for row, text in other.texts.items()}
        return _Block(AnnotationColumns(**{name: both[name][order] for name in names}), texts, np.zeros(0, np.int64))


def _plain_block(
    content: np.ndarray, records: Records, start: int, stop: int, images: IdTable, categories: IdTable
) -> _Block | None:
    """Read the plain records of a block; None when most are not plain, and the typed decoder does better."""
    n = stop - start
    ids, image, category = np.full(n, ABSENT_ID), np.empty(n, np.int64), np.empty(n, np.int64)
    xywh, areas, iscrowd = np.empty((n, 4)), np.full(n, np.nan), np.full(n, _ABSENT_FLAG, np.int8)
    read = parse_annotations(content, records.spans[start:stop], ids, image, category, xywh, areas, iscrowd)
    if read.sum() < n / 2:
        return None
    columns = AnnotationColumns(
        positions=np.arange(start, stop),
        ids=ids,
        image=images.integers(image),
        category=categories.integers(category),
        xywh=xywh,
        areas=areas,
        iscrowd=iscrowd,
        boxed=np.zeros(n, bool),
    )
    if not read.all():
        kept = {name: getattr(columns, name)[read] for name in AnnotationColumns.__annotations__}
        return _Block(AnnotationColumns(**kept), {}, start + np.flatnonzero(~read))
    return _Block(columns, {}, np.zeros(0, np.int64))


def _block_of(
    kept: np.ndarray, block: list[AnnotationRecord], images: IdTable, categories: IdTable, log: FindingLog
) -> _Block:
    """Return decoded records as columns."""
    texts: dict[int, str | int] = {}
    numbers = _int64([record.id for record in block], lowest=ABSENT_ID)
    if numbers is None:
        values = [ABSENT_ID if record.id is None else record.id for record in block]
        given = [row for row, value in enumerate(values) if value != ABSENT_ID]
        report_texts("annotations", "id", kept[given], [values[row] for row in given], log)
        texts = {row: value for row, value in enumerate(values) if _int64([value], lowest=ABSENT_ID) is None}
        numbers = np.array([ABSENT_ID if row in texts else value for row, value in enumerate(values)], np.int64)
    flags = [_ABSENT_FLAG if record.iscrowd is None else record.iscrowd for record in block]
    sides = itertools.chain.from_iterable([record.bbox for record in block])
    columns = AnnotationColumns(
        positions=kept,
        ids=numbers,
        image=_reference_numbers("image_id", kept, [record.image_id for record in block], images, log),
        category=_reference_numbers("category_id", kept, [record.category_id for record in block], categories, log),
        xywh=np.fromiter(sides, np.float64, 4 * len(block)).reshape(-1, 4),
        areas=np.array([record.area for record in block], np.float64),  # None becomes NaN
        iscrowd=np.array(flags, np.int8),
        boxed=np.array([isinstance(record, _Boxed) for record in block], bool),
    )
    return _Block(columns, texts, np.zeros(0, np.int64))


def _reference_numbers(
    key: str, positions: np.ndarray, values: Sequence[int | str], table: IdTable, log: FindingLog
) -> np.ndarray:
    if _int64(values) is None:
        report_texts("annotations", key, positions, values, log)
    return table.numbers(values)


def report_texts(name: str, key: str, positions: np.ndarray, values: Sequence[int | str], log: FindingLog) -> None:
    """Report the ids that are texts, or that have more than 64 bits."""
    rows = [row for row, value in enumerate(values) if isinstance(value, str) or _as_number(value) is None]
    log.add_many(
        "string_id",
        rows,
        lambda row: f"{name}[{positions[row]}].{key} must be an integer of 64 bits, got {shorten(values[row])}",
    )


class _Boxed(AnnotationRecord, gc=False):
    """An annotation whose box comes from its segmentation."""


def _decode_block(
    records: Records, start: int, stop: int, log: FindingLog
) -> tuple[np.ndarray, list[AnnotationRecord]]:
    try:
        return np.arange(start, stop), _ANNOTATIONS.decode(records.block(start, stop))
    except msgspec.ValidationError:
        return _decode_one_by_one(records, range(start, stop), AnnotationRecord, log)


def _decode_one_by_one(
    records: Records, positions: Iterable[int], kind: type[_Record], log: FindingLog
) -> tuple[np.ndarray, list[_Record]]:
    decoder, kept, block = msgspec.json.Decoder(kind), [], []
    for position in positions:
        text = records[position]
        try:
            record = decoder.decode(text)
        except msgspec.ValidationError as error:
            mended = _mend(records, position, kind, str(error), log)
            if mended is None:
                continue
            record = mended
        kept.append(position)
        block.append(record)
    return np.array(kept, np.int64), block


def _mend(records: Records, position: int, kind: type[_Record], message: str, log: FindingLog) -> _Record | None:
    """Report a record that cannot be read as it is; return it when it can be mended."""
    record = records.value(position)
    code, example = _explain(f"{records.name}[{position}]", record, message)
    if kind is AnnotationRecord and isinstance(record, dict) and not record.get("bbox"):
        box = box_of_segmentation(record.get("segmentation"))
        if box is not None:
            try:
                mended = msgspec.convert({**record, "bbox": box}, _Boxed)
            except msgspec.ValidationError as error:
                code, example = _explain(f"{records.name}[{position}]", record, str(error))
            else:
                where = _where(record)
                example = f"{records.name}[{position}] must have a bbox beside its segmentation, got none{where}"
                log.add("segmentation_without_box", example)
                return mended if log.repairs("segmentation_without_box") else None  # type: ignore[return-value]
    log.add(code, example)
    return None


def _explain(name: str, record: Any, message: str) -> tuple[str, str]:
    """Put msgspec's finding on one record into our words, with the value that was found."""
    if not isinstance(record, dict):
        return "malformed_record", f"{name} must be an object, got {shorten(record)}"
    missing = re.match(r"Object missing required field `(\w+)`", message)
    if missing:
        return "malformed_record", f"{name} must have the field {missing[1]!r}, got none{_where(record)}"
    field_name = re.search(r"at `\$\.(\w+)", message)
    if field_name is None:
        return "malformed_record", f"{name} must be a record of COCO, got {shorten(record)}"
    key = field_name[1]
    code = "invalid_box" if key == "bbox" else "malformed_record"
    return code, f"{name}.{key} must be {_CONSTRAINTS[key]}, got {shorten(record[key])}{_where(record)}"


def _where(record: dict[str, Any]) -> str:
    for key in ("image_id", "id"):
        if key in record:
            return f" ({key} {shorten(record[key])})"
    return ""


def _int64(values: Sequence[int | str | None], lowest: int = ABSENT_ID + 1) -> np.ndarray | None:
    """Return the values as int64 when they all are integers of 64 bits, else ``None``."""
    if not len(values):
        return np.zeros(0, np.int64)
    try:
        column = np.frombuffer(array("q", values), np.int64)  # type: ignore[type-var]
    except (TypeError, OverflowError):
        return None
    return column if column.min() >= lowest else None


def _as_number(value: int | str) -> int | None:
    """Return the 64-bit integer that a value is or is written like."""
    if isinstance(value, str):
        if not re.fullmatch(r"0|-?[1-9]\d{0,18}", value):
            return None
        value = int(value)
    return value if -(2**63) < value < 2**63 else None


def shorten(value: object) -> str:
    """Return a value for a message, cut when it is long."""
    text = repr(value) if not isinstance(value, (dict, list)) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
