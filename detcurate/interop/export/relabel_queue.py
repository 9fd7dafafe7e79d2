"""The relabel queue as a COCO file: images with all of their labels, and the possible label errors.

``label_errors`` is a top-level list apart from ``annotations``, so that no one trains on it by accident. Its records
have the fields of a COCO annotation and of a COCO result, with ids that no annotation of the pool has.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from detcurate.coco.dataset import CocoDataset, read_coco
from detcurate.coco.records import Records
from detcurate.coco.text import decode_as, open_source
from detcurate.errors import DatasetError
from detcurate.io.files import atomic_path
from detcurate.legacy import renamed, renamed_keys, warn_renamed
from detcurate.manifest.provenance import AS_WRITTEN
from detcurate.manifest.write import open_text, write_subset
from detcurate.structures.boxes import xywh_to_xyxy, xyxy_to_xywh

_LARGEST_EXACT_FLOAT = 2**53


def category_ids_of(dataset: CocoDataset) -> list[int | str]:
    """Return the category id of each class in the file: C integers or texts."""
    records: list[dict[str, Any]] = msgspec.json.decode(dataset.other_top_level["categories"])
    of_name = {record["name"]: record["id"] for record in records}
    return [of_name[name] for name in dataset.class_names]


def annotation_id_of(dataset: CocoDataset, annotations: Records, row: int) -> int | str | None:
    """Return the id of an annotation as it is written again; None where its record has none.

    Args:
        dataset: The file.
        annotations: Its annotation records, from ``dataset.open()``.
        row: The annotation's row.
    """
    if "id" in dataset.patched and dataset.patched["id"][row]:
        return int(dataset.annotation_ids[row])
    key: int | str | None = annotations.value(int(dataset.annotation_positions[row])).get("id")
    return key


def free_ids(dataset: CocoDataset, count: int) -> list[int]:
    """Return unused annotation ids: above all used ones, or the smallest free ones if those are too large.

    A reader that parses ids as floats would mix up ids above 2^53.
    """
    highest = max(int(dataset.annotation_ids.max(initial=0)), 0)
    if highest + count <= _LARGEST_EXACT_FLOAT:
        return list(range(highest + 1, highest + 1 + count))
    used = set(dataset.annotation_ids.tolist())
    return list(itertools.islice((number for number in itertools.count(1) if number not in used), count))


RELABEL_FILE = "relabel.json"
LABEL_ERROR_KINDS = ("missing_label", "wrong_class", "inaccurate_box")

_HEADER, _LIST = "relabel", "label_errors"
QUEUE_KEYS = (_HEADER, _LIST, "suspicions")
"""The top-level keys of a queue beside those of COCO, with the one of version 0.1."""
_SAME_PX = 1e-6


@dataclass(frozen=True)
class LabelError:
    """One possible label error: a wrong or inaccurate label, or an object without a label.

    Args:
        kind: A name in ``LABEL_ERROR_KINDS``.
        label_error_score: In (0, 1]; higher = more likely an error.
        image_row: The row of its image in the dataset.
        label_row: The row of the label in the dataset; -1 for ``missing_label``.
        box: Four floats, xyxy px: the consensus box.
        class_index: In [0, C): the consensus class.
        score: In [0, 1]: the consensus probability of that class.
        num_votes: In [0, E]: the number of members with that class as the most probable one.
        num_members: The number of members E.
        is_selected: Whether its image is in the subset.
    """

    kind: str
    label_error_score: float
    image_row: int
    label_row: int
    box: tuple[float, float, float, float]
    class_index: int
    score: float
    num_votes: int
    num_members: int
    is_selected: bool = False

    def sentence(self, class_names: Sequence[str]) -> str:
        """Return a description for annotators, such as ``wrong_class 0.83: car by 9 of 10``."""
        votes = f"{class_names[self.class_index]} by {self.num_votes} of {self.num_members}"
        return f"{self.kind} {self.label_error_score:.2f}: {votes}"


def write_queue(
    path: Path, dataset: CocoDataset, label_errors: Sequence[LabelError], header: Mapping[str, Any]
) -> None:
    """Write the images with all of their labels, byte for byte, and their possible label errors, atomically.

    Args:
        path: The file; compressed when its name ends in ``.gz``.
        dataset: The pool.
        label_errors: The highest score first; the position is the rank. An empty list gives a file without images.
        header: The value of the key ``relabel``.
    """
    lines = b",\n".join(orjson.dumps(record) for record in label_error_records(dataset, label_errors))
    top_level = {key: value for key, value in dataset.other_top_level.items() if key not in QUEUE_KEYS}
    top_level |= {_HEADER: orjson.dumps(dict(header)), _LIST: b"[\n" + lines + b"\n]" if lines else b"[]"}
    described = dataclasses.replace(dataset, other_top_level=top_level)
    rows = np.unique([label_error.image_row for label_error in label_errors]).astype(np.int64)
    if len(rows):
        write_subset(path, described, dataset.image_ids[rows])
        return
    pieces = (orjson.dumps(key) + b": " + (value or b"[]") for key, value in top_level.items())
    with atomic_path(path) as temporary, open_text(temporary, compress=path.suffix == ".gz") as stream:
        stream.write(b"{" + b",\n".join(pieces) + b"}\n")


def label_error_records(dataset: CocoDataset, label_errors: Sequence[LabelError]) -> list[dict[str, Any]]:
    """Return label errors as COCO records by rank, with the ids and class names of the pool's file."""
    _, annotations = dataset.open()
    categories = category_ids_of(dataset)
    records = []
    for rank, (label_error, key) in enumerate(
        zip(label_errors, free_ids(dataset, len(label_errors)), strict=True), start=1
    ):
        label = label_error.label_row
        known = label >= 0
        box = xyxy_to_xywh(np.array([label_error.box]))[0]
        records.append(
            {
                "id": key,
                "rank": rank,
                "kind": label_error.kind,
                "label_error_score": label_error.label_error_score,
                "image_id": dataset.original_id(label_error.image_row),
                "category_id": categories[label_error.class_index],
                "category_name": dataset.class_names[label_error.class_index],
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
                "iscrowd": 0,
                "score": label_error.score,
                "num_votes": label_error.num_votes,
                "num_members": label_error.num_members,
                "selected": label_error.is_selected,
                "annotation_id": annotation_id_of(dataset, annotations, label) if known else None,
                "labelled_bbox": xyxy_to_xywh(dataset.boxes[label : label + 1])[0].tolist() if known else None,
                "labelled_category_id": categories[int(dataset.class_index[label])] if known else None,
            }
        )
    return records


class _Record(msgspec.Struct):
    """The fields of a label error that are read."""

    kind: str
    label_error_score: float
    image_id: int | str
    category_name: str
    bbox: tuple[float, float, float, float]
    score: float
    num_votes: int
    num_members: int
    selected: bool = False
    annotation_id: int | str | None = None
    labelled_bbox: tuple[float, float, float, float] | None = None


def read_queue(path: Path) -> tuple[CocoDataset, tuple[LabelError, ...]]:
    """Read a queue that :func:`write_queue` wrote, or that of version 0.1.

    Returns:
        The images with their labels, and the label errors by rank, with rows of that dataset.

    Raises:
        DatasetError: It cannot be read, is not a relabel queue, or lists no label error.
    """
    if not path.is_file():
        raise DatasetError(
            f"{path}: no relabel queue. Run the stage manifest with CURATE.MANIFEST.RELABEL_LIMIT above 0, in the "
            "prediction mode cluster, which scores label errors."
        )
    records = _read_records(path)
    if not records:
        raise DatasetError(f"{path}: lists no label error, so there is nothing to relabel.")
    dataset = read_coco(path, AS_WRITTEN)
    return dataset, _label_errors(path, dataset, records)


def read_label_errors(path: Path, dataset: CocoDataset) -> tuple[LabelError, ...]:
    """Read the label errors only, by rank and with rows of the pool; an absent or empty file gives none.

    Raises:
        DatasetError: It is not a relabel queue, or that of another pool.
    """
    return _label_errors(path, dataset, _read_records(path)) if path.is_file() else ()


def _read_records(path: Path) -> list[_Record]:
    try:
        queue = decode_as(open_source(path, kind="relabel queue"), _Queue)
        if queue.suspicions is None:
            if queue.label_errors is None:
                raise msgspec.ValidationError("an object without label_errors")
            return msgspec.convert(queue.label_errors, list[_Record])
        warn_renamed("suspicions", _LIST)
        records = [renamed_keys(record) for record in queue.suspicions]
        for record in records:
            record["kind"] = renamed(str(record.get("kind")))
        return msgspec.convert(records, list[_Record])
    except msgspec.ValidationError as error:
        raise DatasetError(f"{path}: not a relabel queue of detcurate (got {error}). Write it again.") from error


class _Queue(msgspec.Struct):
    label_errors: list[dict[str, Any]] | None = None
    suspicions: list[dict[str, Any]] | None = None


def _label_errors(path: Path, dataset: CocoDataset, records: Sequence[_Record]) -> tuple[LabelError, ...]:
    rows = {dataset.original_id(row): row for row in range(len(dataset))}
    classes = {name: index for index, name in enumerate(dataset.class_names)}
    bounds = np.searchsorted(dataset.image_index, np.arange(len(dataset) + 1))
    label_errors = []
    for rank, record in enumerate(records, start=1):
        row, class_index = rows.get(record.image_id), classes.get(record.category_name)
        if row is None or class_index is None or record.kind not in LABEL_ERROR_KINDS:
            raise DatasetError(
                f"{path}: the label error of rank {rank} has an unknown kind, image or class (got {record.kind!r}, "
                f"image_id {record.image_id!r}, {record.category_name!r}). Write the queue again."
            )
        x1, y1, x2, y2 = xywh_to_xyxy(np.array([record.bbox]))[0].tolist()
        label_errors.append(
            LabelError(
                kind=record.kind,
                label_error_score=record.label_error_score,
                image_row=row,
                label_row=_label_row(dataset, range(bounds[row], bounds[row + 1]), record),
                box=(x1, y1, x2, y2),
                class_index=class_index,
                score=record.score,
                num_votes=record.num_votes,
                num_members=record.num_members,
                is_selected=record.selected,
            )
        )
    return tuple(label_errors)


def _label_row(dataset: CocoDataset, rows: range, record: _Record) -> int:
    """Return the row of the label of a label error, -1 for none; by its box too, as ids may be absent or repeat."""
    if record.labelled_bbox is None:
        return -1
    box = xywh_to_xyxy(np.array([record.labelled_bbox]))[0]
    same = [row for row in rows if np.abs(dataset.boxes[row] - box).max() <= _SAME_PX]
    by_id = [row for row in same if int(dataset.annotation_ids[row]) == record.annotation_id]
    return (by_id or same or [-1])[0]
