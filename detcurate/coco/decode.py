"""The records of a COCO file decoded: typed, many at a time, and one by one only where something is wrong."""

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

from detcurate.coco.json_scanner import ABSENT_FLAG, ABSENT_ID
from detcurate.coco.text import Records
from detcurate.coco.validation.findings import FindingLog

_Side = Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]
_RunLength = Annotated[int, msgspec.Meta(ge=0)]
_BITS = 5  # that a character of a compressed mask holds
_MOST_BITS = 60


class _Mask(msgspec.Struct):
    counts: str | list[_RunLength]
    size: tuple[_Side, _Side]


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """Return the xywh box around polygons or a run-length mask, or ``None`` when there is nothing to take it from.

    pycocotools is not asked: it divides by a height of 0, and reads and writes beyond a text that is cut short.

    Args:
        segmentation: What the record holds, as Python's JSON reader gives it.

    Example:
        >>> box_of_segmentation([[10, 12, 40, 12, 40.5, 30]])
        [10.0, 12.0, 30.5, 18.0]
    """
    try:
        if isinstance(segmentation, dict):
            mask = msgspec.convert(segmentation, _Mask)
            counts = _run_lengths(mask.counts) if isinstance(mask.counts, str) else mask.counts
            return _box_of_runs(counts, *mask.size)
        return _box_of_polygons(segmentation) if isinstance(segmentation, list) and segmentation else None
    except (ValueError, TypeError, OverflowError, msgspec.ValidationError):
        return None


def _box_of_polygons(polygons: Sequence[Any]) -> list[float] | None:
    points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons])
    low, high = points.min(axis=0), points.max(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        box = [*low.tolist(), *(high - low).tolist()]
    return box if np.isfinite(box).all() else None


def _run_lengths(text: str) -> list[int]:
    """Return the run lengths that the text of a compressed mask stands for.

    Source:
        ``rleFrString`` in pycocotools, ``common/maskApi.c``.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= _MOST_BITS:
            raise ValueError(f"{character!r} does not stand in a compressed mask")
        value |= (bits & 0x1F) << shift
        shift += _BITS
        if not bits & 0x20:  # the last character of this number
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a compressed mask is cut short")
    return counts


def _box_of_runs(counts: Sequence[int], height: int, width: int) -> list[float] | None:
    """Return the box around every second run of a mask that is read column by column."""
    if min(counts, default=0) < 0 or sum(counts) > height * width:
        return None
    bounds = np.cumsum([0, *counts], dtype=np.int64)
    first, last = bounds[1:-1:2], bounds[2::2] - 1
    first, last = first[first <= last], last[first <= last]
    if not len(first):
        return None
    (left, top), (right, bottom) = np.divmod(first, height), np.divmod(last, height)
    y, y_last = (0, height - 1) if (left < right).any() else (top.min(), bottom.max())
    return [float(left.min()), float(y), float(right.max() - left.min() + 1), float(y_last - y + 1)]


@dataclass
class IdTable:
    """Numbers for the ids of one kind: integers are themselves, texts get the smallest numbers that are free.

    A text that is written like an integer is that integer: annotations often say "41" where the image says 41.
    """

    named: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Sequence[int | str]) -> tuple[IdTable, np.ndarray]:
        """Return the table of all ids of one kind, and the (n,) int64 numbers of the values."""
        if (numbers := int64_column(values)) is not None:
            return cls(), numbers
        used = {number for value in values if (number := as_number(value)) is not None}
        texts = sorted({str(value) for value in values if as_number(value) is None})
        free = (number for number in itertools.count(1) if number not in used)
        table = cls(dict(zip(texts, free)))  # noqa: B905  the numbers never end
        return table, table.numbers(values)

    def numbers(self, values: Sequence[int | str]) -> np.ndarray:
        """Return (n,) int64 numbers, ``ABSENT_ID`` for what names nothing: a text, or the number of another text."""
        if (numbers := int64_column(values)) is not None:
            return self.integers(numbers)
        integers = [as_number(value) for value in values]
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


def int64_column(values: Sequence[int | str | None], lowest: int = ABSENT_ID + 1) -> np.ndarray | None:
    """Return the values as int64 when they all are integers of 64 bits, else ``None``."""
    if not len(values):
        return np.zeros(0, np.int64)
    try:
        column = np.frombuffer(array("q", values), np.int64)  # type: ignore[type-var]
    except (TypeError, OverflowError):
        return None
    return column if column.min() >= lowest else None


def as_number(value: int | str) -> int | None:
    """Return the 64-bit integer that a value is or is written like."""
    if isinstance(value, str):
        if not re.fullmatch(r"0|-?[1-9]\d{0,18}", value):
            return None
        value = int(value)
    return value if -(2**63) < value < 2**63 else None


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
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] | bool | None = ABSENT_FLAG


class CategoryRecord(msgspec.Struct, gc=False):
    """What is read of a category."""

    id: _Id
    name: str


_Record = TypeVar("_Record", ImageRecord, AnnotationRecord, CategoryRecord)


def read_records(records: Records, kind: type[_Record], log: FindingLog) -> tuple[np.ndarray, list[_Record]]:
    """Decode a whole list; return the (n,) positions and the records of those that could be read."""
    positions: list[np.ndarray] = []
    decoded: list[_Record] = []
    for start, stop in records.ranges():
        kept, block = decode_block(records, range(start, stop), kind, log)
        positions.append(kept)
        decoded += block
    return np.concatenate(positions) if positions else np.zeros(0, np.int64), decoded


def report_texts(name: str, key: str, positions: np.ndarray, values: Sequence[int | str], log: FindingLog) -> None:
    """Report the ids that are texts, or that have more than 64 bits."""
    rows = [row for row, value in enumerate(values) if isinstance(value, str) or as_number(value) is None]
    log.add_many(
        "string_id",
        rows,
        lambda row: f"{name}[{positions[row]}].{key} must be an integer of 64 bits, got {shorten(values[row])}",
    )


class BoxedRecord(AnnotationRecord, gc=False):
    """An annotation whose box comes from its segmentation."""


def decode_block(
    records: Records, block: range, kind: type[_Record], log: FindingLog
) -> tuple[np.ndarray, list[_Record]]:
    """Decode neighbouring records; return the positions and the records of those that could be read."""
    try:
        decoded: list[_Record] = msgspec.json.decode(records.block(block.start, block.stop), type=list[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError:
        return decode_one_by_one(records, block, kind, log)
    return np.arange(block.start, block.stop), decoded


def decode_one_by_one(
    records: Records, positions: Iterable[int], kind: type[_Record], log: FindingLog
) -> tuple[np.ndarray, list[_Record]]:
    """Decode records; return the positions and the records of those that could be read, and report the others."""
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
                mended = msgspec.convert({**record, "bbox": box}, BoxedRecord)
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


def shorten(value: object) -> str:
    """Return a value for a message, cut when it is long."""
    text = repr(value) if not isinstance(value, (dict, list)) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
