"""A COCO annotation file as columns: read once, checked once, its records kept word for word."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import numpy as np

from detcurate.boxes import xywh_to_xyxy
from detcurate.errors import DatasetError, SelectionError

_ABSENT_ID = -(2**63)
_Id = Annotated[int, msgspec.Meta(gt=_ABSENT_ID, le=2**63 - 1)]
_Length = Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]

# What each field must be, in the words of the error message.
_CONSTRAINTS = {
    "id": "an integer",
    "image_id": "an integer",
    "category_id": "an integer",
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
# Typed records are several times the size of their text: this many at a time, so that memory does not follow the file.
_BLOCK = 65_536
_NUM_EXAMPLES = 3


class _Image(msgspec.Struct, gc=False):
    id: _Id
    file_name: str
    width: _Length
    height: _Length
    sequence: str | int | None = None
    frame_index: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    id: _Id | None = None
    area: Annotated[float, msgspec.Meta(ge=0)] | None = None
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] | bool = 0


class _Category(msgspec.Struct, gc=False):
    id: _Id
    name: str


_Record = TypeVar("_Record", _Image, _Annotation, _Category)


@dataclass(frozen=True)
class CocoDataset:
    """A labelled pool: images by ascending id, their boxes by image, and the records of the file verbatim.

    Axes: I images, A annotations, C classes. ``class_index`` numbers the categories from 0 by ascending id, as
    Detectron2 does. Annotations stand by image, within an image in the order of the file.

    Args:
        path: The file, as it was named.
        sha256: Digest of the file's bytes.
        image_ids: (I,) int64, ascending and unique.
        file_names: I texts, relative to the image root.
        widths: (I,) int64, px.
        heights: (I,) int64, px.
        sequences: I names of the recordings, None where the image names none.
        frame_index: (I,) int64, -1 where the image has none.
        category_ids: (C,) int64, ascending and unique.
        class_names: C unique texts.
        annotation_ids: (A,) int64, as in the file, where they may repeat; numbered where absent.
        image_index: (A,) int64 in [0, I), ascending: the row of the annotation's image.
        class_index: (A,) int64 in [0, C).
        boxes: (A, 4) float64, xyxy in absolute pixels, each of positive size.
        areas: (A,) float64, the file's ``area`` or, where absent, that of the box, px².
        iscrowd: (A,) bool; False where absent.
        image_file_order: (I,) int64, the position of each image's record in the file.
        annotation_file_order: (A,) int64, likewise.
        raw_images: I records, aligned with ``image_ids``.
        raw_annotations: A records, aligned with ``annotation_ids``.
        raw_top_level: Every key of the file with its value, in the order of the file.
    """

    path: Path
    sha256: str
    image_ids: np.ndarray
    file_names: tuple[str, ...]
    widths: np.ndarray
    heights: np.ndarray
    sequences: tuple[str | None, ...]
    frame_index: np.ndarray
    category_ids: np.ndarray
    class_names: tuple[str, ...]
    annotation_ids: np.ndarray
    image_index: np.ndarray
    class_index: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    iscrowd: np.ndarray
    image_file_order: np.ndarray
    annotation_file_order: np.ndarray
    raw_images: tuple[msgspec.Raw, ...]
    raw_annotations: tuple[msgspec.Raw, ...]
    raw_top_level: Mapping[str, msgspec.Raw]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_boxes(self) -> int:
        """The number of annotations A, crowd regions included."""
        return len(self.annotation_ids)

    @property
    def boxes_per_image(self) -> np.ndarray:
        """(I,) int64: the number of annotations of each image, 0 for an image without any."""
        return np.bincount(self.image_index, minlength=len(self))

    def class_counts(self) -> np.ndarray:
        """Return the number of annotations of each class: (C,) int64."""
        return np.bincount(self.class_index, minlength=len(self.class_names))

    def subset_rows(self, image_ids: np.ndarray) -> np.ndarray:
        """Return the rows of the images named, in the order given; no id gives no row.

        Args:
            image_ids: (K,) integers, unique.

        Returns:
            (K,) int64 in [0, I).

        Raises:
            SelectionError: An id is not an image of this file, or is named twice.
        """
        wanted = np.asarray(image_ids, dtype=np.int64)
        rows, known = _find(wanted, self.image_ids)
        if not known.all():
            raise SelectionError(
                f"image_ids must be images of {self.path}, got {_examples(wanted[~known])}; "
                "select from the same annotation file that is written"
            )
        if len(np.unique(wanted)) != len(wanted):
            raise SelectionError(f"image_ids must be unique, got {len(wanted) - len(np.unique(wanted))} repeated")
        return rows


def read_coco(path: Path) -> CocoDataset:
    """Read a COCO detection file into columns.

    A missing ``iscrowd`` is 0, a missing ``area`` that of the box, a missing annotation ``id`` is numbered on from
    the highest one; annotation ids may repeat. A file without annotations gives A = 0.

    Raises:
        DatasetError: The file cannot be read, is not JSON (with line and column), is not a COCO detection file, has
            no image or category, repeats an image id, a category id or a category name, or has an annotation on an
            unknown image or category or with a box that is not of positive size.

    Source:
        https://cocodataset.org/#format-data, "Data format", sections 0 and 1.
    """
    data = _read_bytes(path)
    top_level = _decode_top_level(path, data)
    records = {name: _decode_list(path, name, top_level) for name in ("images", "annotations", "categories")}
    categories = _category_columns(path, records["categories"])
    images, image_order = _image_columns(path, records["images"])
    annotations, annotation_order = _annotation_columns(
        path, records["annotations"], images["image_ids"], categories["category_ids"]
    )
    return CocoDataset(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        **categories,
        **images,
        **annotations,
        image_file_order=image_order,
        annotation_file_order=annotation_order,
        raw_images=tuple(records["images"][position] for position in image_order.tolist()),
        raw_annotations=tuple(records["annotations"][position] for position in annotation_order.tolist()),
        raw_top_level=top_level,
    )


def check_images(dataset: CocoDataset, image_root: Path) -> None:
    """Check that every image's file is there, without opening it.

    Raises:
        DatasetError: ``image_root`` is not a directory, a ``file_name`` is absolute or leads out of it, or files are
            missing; the message counts them and names the first three.
    """
    if not image_root.is_dir():
        raise DatasetError(f"image_root must be a directory, got {image_root}; name the folder that holds the images")
    outside = [name for name in dataset.file_names if _leads_out(name)]
    if outside:
        raise DatasetError(
            f"file_name must be relative and stay inside the image root, got {len(outside):,} that do not: "
            f"{_examples(outside)} ({dataset.path}); write them relative to {image_root}"
        )
    missing = [name for name in dataset.file_names if not _is_file(image_root / name)]
    if missing:
        raise DatasetError(
            f"every file_name must be a file below {image_root}, got {len(missing):,} of {len(dataset):,} missing: "
            f"{_examples(missing)} ({dataset.path}); add the files or name another image root"
        )


def _leads_out(name: str) -> bool:
    # By the text alone: a link inside the root that points elsewhere is the user's own arrangement.
    return Path(name).is_absolute() or Path(os.path.normpath(name)).parts[:1] == ("..",)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name the file system cannot hold, or a folder that may not be entered
        return False


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"the annotation file must be readable, got {error.strerror or error} ({path}); check the path"
        ) from error
    if not data.strip():
        raise DatasetError(f"the annotation file must hold a COCO dataset, got an empty file ({path}); write it again")
    return data


def _decode_top_level(path: Path, data: bytes) -> dict[str, msgspec.Raw]:
    try:
        if not data.isascii():  # msgspec leaves the text of what it skips unchecked, and subsets copy it
            data.decode()
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise DatasetError(
            f"the annotation file must be a COCO object with images, annotations and categories, got "
            f"{str(error).rpartition('got ')[2].replace('`', '')} ({path}); export it as COCO detection JSON"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _raise_broken(path, data, error)


def _raise_broken(path: Path, data: bytes, error: Exception) -> NoReturn:
    found = re.search(r"\(byte (\d+)\)", str(error))
    if isinstance(error, UnicodeDecodeError):
        offset, reason = error.start, "bytes that are not UTF-8"
    elif isinstance(error, RecursionError):
        offset, reason = 0, "too many nested lists"
    elif found:
        offset, reason = int(found[1]), str(error)[: found.start()].removeprefix("JSON is malformed: ").strip()
    else:
        offset, reason = len(data), "an end before the JSON is complete"
    line, column = data.count(b"\n", 0, offset) + 1, offset - data.rfind(b"\n", 0, offset)
    hint = "NaN and Infinity are not JSON" if re.match(rb"-?(NaN|Inf)", data[offset : offset + 4]) else "write it again"
    raise DatasetError(
        f"the annotation file must be valid JSON, got {reason} ({path}, line {line}, column {column}); {hint}"
    ) from None


def _decode_list(path: Path, name: str, top_level: Mapping[str, msgspec.Raw]) -> list[msgspec.Raw]:
    if name not in top_level:
        raise DatasetError(
            f"the annotation file must have the key {name!r}, got the keys {list(top_level)} ({path}); "
            "export it as COCO detection JSON"
        )
    try:
        return msgspec.json.decode(top_level[name], type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        got = str(error).rpartition("got ")[2].replace("`", "")
        raise DatasetError(f"{name} must be a list, got {got} ({path}); export it as COCO detection JSON") from None


def _decode_records(
    path: Path, name: str, raws: Sequence[msgspec.Raw], kind: type[_Record], first: int = 0
) -> list[_Record]:
    decoder, records = msgspec.json.Decoder(kind), []
    try:
        for raw in raws:
            records.append(decoder.decode(raw))
    except msgspec.ValidationError as error:
        raise _record_error(path, f"{name}[{first + len(records)}]", raws[len(records)], str(error)) from None
    return records


def _record_error(path: Path, name: str, raw: msgspec.Raw, message: str) -> DatasetError:
    """Put msgspec's finding on one record into our words, with the value that was found."""
    missing = re.match(r"Object missing required field `(\w+)`", message)
    if missing:
        return DatasetError(f"{name} must have the field {missing[1]!r}, got none ({path}); add it or drop the record")
    record = json.loads(bytes(raw))
    field = re.search(r"at `\$\.(\w+)", message)
    if field is None:
        return DatasetError(f"{name} must be an object, got {_shorten(record)} ({path}); drop the record")
    value = record[field[1]]
    is_text_id = field[1].endswith("id") and isinstance(value, str)
    advice = "COCO ids are integers, not texts: number the records" if is_text_id else "mend the record"
    key = "image_id" if "image_id" in record else "id"
    where = f"{path}, {key} {record.get(key)!r}"
    return DatasetError(
        f"{name}.{field[1]} must be {_CONSTRAINTS[field[1]]}, got {_shorten(value)} ({where}); {advice}"
    )


def _category_columns(path: Path, raws: Sequence[msgspec.Raw]) -> dict[str, Any]:
    records = sorted(_decode_records(path, "categories", raws, _Category), key=lambda record: record.id)
    ids, names = np.array([record.id for record in records], np.int64), [record.name for record in records]
    _validate_ids(path, "category", ids)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"category names must be unique, got {twice!r} twice ({path}); rename one of them")
    return {"category_ids": ids, "class_names": tuple(names)}


def _image_columns(path: Path, raws: Sequence[msgspec.Raw]) -> tuple[dict[str, Any], np.ndarray]:
    records = _decode_records(path, "images", raws, _Image)
    ids = np.array([record.id for record in records], np.int64)
    order = np.argsort(ids, kind="stable")
    _validate_ids(path, "image", ids[order])
    records = [records[position] for position in order.tolist()]
    frames = [-1 if record.frame_index is None else record.frame_index for record in records]
    columns = {
        "image_ids": ids[order],
        "file_names": tuple(record.file_name for record in records),
        "widths": np.array([record.width for record in records], np.int64),
        "heights": np.array([record.height for record in records], np.int64),
        "sequences": tuple(None if record.sequence is None else str(record.sequence) for record in records),
        "frame_index": np.array(frames, np.int64),
    }
    return columns, order


def _validate_ids(path: Path, name: str, ascending: np.ndarray) -> None:
    if not len(ascending):
        raise DatasetError(f"the annotation file must have at least one {name}, got none ({path})")
    repeated = ascending[1:][np.diff(ascending) == 0]
    if len(repeated):
        raise DatasetError(
            f"{name} ids must be unique, got {_examples(np.unique(repeated))} more than once ({path}); renumber them"
        )


def _annotation_columns(
    path: Path, raws: Sequence[msgspec.Raw], image_ids: np.ndarray, category_ids: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the columns by image, and the position in the file of each row."""
    ids, image, category, iscrowd, areas, bbox = _decode_annotations(path, raws)
    absent = ids == _ABSENT_ID
    ids[absent] = ids[~absent].max(initial=0) + 1 + np.arange(absent.sum())
    image_index = _validate_known(path, "image", image, image_ids, ids)
    class_index = _validate_known(path, "category", category, category_ids, ids)
    boxes = _validate_boxes(path, bbox, image)
    order = np.argsort(image_index, kind="stable")
    columns = {
        "annotation_ids": ids,
        "image_index": image_index,
        "class_index": class_index,
        "boxes": boxes,
        "areas": np.where(np.isnan(areas), bbox[:, 2] * bbox[:, 3], areas),
        "iscrowd": iscrowd,
    }
    return {name: column[order] for name, column in columns.items()}, order


def _decode_annotations(path: Path, raws: Sequence[msgspec.Raw]) -> tuple[np.ndarray, ...]:
    """Return ids, image ids, category ids, crowd flags, areas and xywh boxes by file; NaN is an absent area."""
    ids, image, category = np.empty((3, len(raws)), np.int64)
    iscrowd, areas, bbox = np.empty(len(raws), bool), np.empty(len(raws)), np.empty((len(raws), 4))
    for start in range(0, len(raws), _BLOCK):
        records = _decode_records(path, "annotations", raws[start : start + _BLOCK], _Annotation, start)
        rows = slice(start, start + len(records))
        ids[rows] = [_ABSENT_ID if record.id is None else record.id for record in records]
        image[rows] = [record.image_id for record in records]
        category[rows] = [record.category_id for record in records]
        iscrowd[rows] = [record.iscrowd for record in records]
        areas[rows] = [np.nan if record.area is None else record.area for record in records]
        bbox[rows] = [record.bbox for record in records]
    return ids, image, category, iscrowd, areas, bbox


def _validate_known(
    path: Path, name: str, wanted: np.ndarray, known_ids: np.ndarray, annotation_ids: np.ndarray
) -> np.ndarray:
    index, known = _find(wanted, known_ids)
    if not known.all():
        first = int(np.argmin(known))
        raise DatasetError(
            f"annotations[{first}].{name}_id must be the id of one of the {len(known_ids):,} {name} records, got "
            f"{wanted[first]} ({path}, annotation id {annotation_ids[first]}; {int((~known).sum()):,} such "
            f"annotations); add the {name} or drop the annotations"
        )
    return index


def _validate_boxes(path: Path, bbox: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the (A, 4) xyxy boxes of xywh ones; checked after the sum, which can round a tiny size away."""
    with np.errstate(over="ignore"):
        boxes = xywh_to_xyxy(bbox)
    valid = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not valid.all():
        first = int(np.argmin(valid))
        raise DatasetError(
            f"annotations[{first}].bbox must have a width and a height above 0, got {bbox[first].tolist()} ({path}, "
            f"image_id {image[first]}; {int((~valid).sum()):,} such annotations); drop the annotations"
        )
    return boxes


def _find(wanted: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each wanted value stands in a sorted column that is not empty, and whether it does at all."""
    index = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return index, ascending[index] == wanted


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _examples(values: Sequence[object] | np.ndarray) -> str:
    shown = ", ".join(str(value) for value in values[:_NUM_EXAMPLES])
    return shown + (", …" if len(values) > _NUM_EXAMPLES else "")
