"""The records of a COCO file decoded: typed, many at a time, and one by one only where something is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from detcurate.coco.fast import ABSENT_FLAG, ABSENT_ID
from detcurate.coco.findings import FindingLog
from detcurate.coco.ids import as_number
from detcurate.coco.segmentation import box_of_segmentation
from detcurate.coco.source import Records

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
