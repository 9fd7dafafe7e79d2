"""Decode the records of a COCO file: typed and in blocks, one by one only where a block has an invalid record."""

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

from detcurate.coco import ABSENT_FLAG, ABSENT_ID
from detcurate.coco.records import Records
from detcurate.coco.validation.findings import FindingLog

_Side = Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]
_RunLength = Annotated[int, msgspec.Meta(ge=0)]
_BITS = 5  # per character of a compressed mask
_MAX_BITS = 60


class _Mask(msgspec.Struct):
    counts: str | list[_RunLength]
    size: tuple[_Side, _Side]


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """Return the xywh box around polygons or a run-length mask, or ``None`` when they are empty or invalid.

    pycocotools is not used: it divides by a height of 0, and reads and writes beyond the end of truncated counts.

    Args:
        segmentation: The value of the record, as decoded by Python's JSON reader.

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
    """Decode the run lengths of a compressed mask.

    Source:
        ``rleFrString`` in pycocotools, ``common/maskApi.c``.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= _MAX_BITS:
            raise ValueError(f"{character!r} is not valid in a compressed mask")
        value |= (bits & 0x1F) << shift
        shift += _BITS
        if not bits & 0x20:  # the last character of this number
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("truncated mask")
    return counts


def _box_of_runs(counts: Sequence[int], height: int, width: int) -> list[float] | None:
    """Return the box around every second run of a mask in column order."""
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
    """Numbers for the ids of one kind: integers keep their value, texts get the smallest unused numbers.

    A text that is written like an integer counts as that integer: annotations often have "41" for image 41.
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
        table = cls(dict(zip(texts, free)))  # noqa: B905  the numbers are infinite
        return table, table.numbers(values)

    def numbers(self, values: Sequence[int | str]) -> np.ndarray:
        """Return (n,) int64 numbers, ``ABSENT_ID`` for an unknown text and for the number of another text."""
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
        """Return int64 ids of the file as numbers: ``ABSENT_ID`` where the number was assigned to a text."""
        if not self.named:
            return numbers
        return np.where(np.isin(numbers, list(self.named.values())), ABSENT_ID, numbers)


def int64_column(values: Sequence[int | str | None], lowest: int = ABSENT_ID + 1) -> np.ndarray | None:
    """Return the values as int64 when all are 64-bit integers, else ``None``."""
    if not len(values):
        return np.zeros(0, np.int64)
    try:
        column = np.frombuffer(array("q", values), np.int64)  # type: ignore[type-var]
    except (TypeError, OverflowError):
        return None
    return column if column.min() >= lowest else None


def as_number(value: int | str) -> int | None:
    """Return the 64-bit integer that a value is or spells, or ``None``."""
    if isinstance(value, str):
        if not re.fullmatch(r"0|-?[1-9]\d{0,18}", value):
            return None
        value = int(value)
    return value if -(2**63) < value < 2**63 else None


_Length = Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]
_Id = int | str

# Valid values of each field, for messages.
_CONSTRAINTS = {
    "id": "an integer or a string",
    "image_id": "an integer or a string",
    "category_id": "an integer or a string",
    "bbox": "four finite numbers [x, y, width, height]",
    "area": "a finite number >= 0",
    "iscrowd": "0 or 1",
    "file_name": "a string",
    "width": "an integer > 0",
    "height": "an integer > 0",
    "sequence": "a string or an integer",
    "frame_index": "an integer >= 0",
    "name": "a string",
}


class ImageRecord(msgspec.Struct, gc=False):
    """The fields that are read of an image."""

    id: _Id
    file_name: str
    width: _Length
    height: _Length
    sequence: str | int | None = None
    frame_index: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class AnnotationRecord(msgspec.Struct, gc=False):
    """The fields that are read of an annotation."""

    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    id: _Id | None = ABSENT_ID
    area: Annotated[float, msgspec.Meta(ge=0)] | None = None
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] | bool | None = ABSENT_FLAG


class CategoryRecord(msgspec.Struct, gc=False):
    """The fields that are read of a category."""

    id: _Id
    name: str


_Record = TypeVar("_Record", ImageRecord, AnnotationRecord, CategoryRecord)


def read_records(records: Records, kind: type[_Record], log: FindingLog) -> tuple[np.ndarray, list[_Record]]:
    """Decode a whole list; return the (n,) positions and the records of the readable ones."""
    positions: list[np.ndarray] = []
    decoded: list[_Record] = []
    for start, stop in records.ranges():
        kept, block = decode_block(records, range(start, stop), kind, log)
        positions.append(kept)
        decoded += block
    return np.concatenate(positions) if positions else np.zeros(0, np.int64), decoded


def report_texts(name: str, key: str, positions: np.ndarray, values: Sequence[int | str], log: FindingLog) -> None:
    """Report the ids that are texts or have more than 64 bits."""
    rows = [row for row, value in enumerate(values) if isinstance(value, str) or as_number(value) is None]
    log.add_many(
        "string_id",
        rows,
        lambda row: f"{name}[{positions[row]}].{key}: not a 64-bit integer (got {shorten(values[row])})",
    )


class BoxedRecord(AnnotationRecord, gc=False):
    """An annotation with a box that was computed from its segmentation."""


def decode_block(
    records: Records, block: range, kind: type[_Record], log: FindingLog
) -> tuple[np.ndarray, list[_Record]]:
    """Decode neighbouring records; return the positions and the records of the readable ones."""
    try:
        decoded: list[_Record] = msgspec.json.decode(records.block(block.start, block.stop), type=list[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError:
        return decode_one_by_one(records, block, kind, log)
    return np.arange(block.start, block.stop), decoded


def decode_one_by_one(
    records: Records, positions: Iterable[int], kind: type[_Record], log: FindingLog
) -> tuple[np.ndarray, list[_Record]]:
    """Decode records one by one; return the positions and the records of the readable ones, and report the others."""
    decoder, kept, block = msgspec.json.Decoder(kind), [], []
    for position in positions:
        text = records[position]
        try:
            record = decoder.decode(text)
        except msgspec.ValidationError as error:
            repaired = _repair(records, position, kind, str(error), log)
            if repaired is None:
                continue
            record = repaired
        kept.append(position)
        block.append(record)
    return np.array(kept, np.int64), block


def _repair(records: Records, position: int, kind: type[_Record], message: str, log: FindingLog) -> _Record | None:
    """Report an invalid record; return it when it can and shall be repaired."""
    record, name = records.value(position), f"{records.name}[{position}]"
    code, example = _describe(name, record, message)
    if kind is AnnotationRecord and isinstance(record, dict) and not record.get("bbox"):
        box = box_of_segmentation(record.get("segmentation"))
        if box is not None:
            try:
                repaired = msgspec.convert({**record, "bbox": box}, BoxedRecord)
            except msgspec.ValidationError as error:
                code, example = _describe(name, record, str(error))
            else:
                example = f"{name}: segmentation without a bbox{_remark('', record)}"
                log.add("segmentation_without_box", example)
                return repaired if log.repairs("segmentation_without_box") else None  # type: ignore[return-value]
    log.add(code, example)
    return None


def _describe(name: str, record: Any, message: str) -> tuple[str, str]:
    """Return the code of msgspec's finding on one record, and a sentence with the offending value."""
    if not isinstance(record, dict):
        return "malformed_record", f"{name}: not an object (got {shorten(record)})"
    missing = re.match(r"Object missing required field `(\w+)`", message)
    if missing:
        return "malformed_record", f"{name}: missing field {missing[1]!r}{_remark('', record)}"
    field_name = re.search(r"at `\$\.(\w+)", message)
    if field_name is None:
        return "malformed_record", f"{name}: not a COCO record (got {shorten(record)})"
    key = field_name[1]
    code = "invalid_box" if key == "bbox" else "malformed_record"
    return code, f"{name}.{key}: not {_CONSTRAINTS[key]}{_remark(f'got {shorten(record[key])}', record)}"


def _remark(found: str, record: dict[str, Any]) -> str:
    """Return the value that was found and the id of the record, in parentheses."""
    ids = (f"{key} {shorten(record[key])}" for key in ("image_id", "id") if key in record)
    parts = [text for text in (found, next(ids, "")) if text]
    return f" ({', '.join(parts)})" if parts else ""


def shorten(value: object) -> str:
    """Return a value for a message, truncated when it is long."""
    text = repr(value) if not isinstance(value, (dict, list)) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
