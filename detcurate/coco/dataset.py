"""Read a COCO annotation file into columns; the records themselves stay in the file, byte for byte."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from detcurate.coco.annotations import find_annotations, read_annotations
from detcurate.coco.decode import CategoryRecord, IdTable, ImageRecord, read_records, report_texts
from detcurate.coco.records import Records, decode_top_level, find_records
from detcurate.coco.text import NotFiniteNumberError, Source, open_source
from detcurate.coco.validation.checks import check_annotations, check_categories, check_images
from detcurate.coco.validation.findings import Finding, FindingLog, describe_errors
from detcurate.errors import DatasetError, SelectionError
from detcurate.structures import Labels
from detcurate.structures.boxes import xyxy_to_xywh

Opened = tuple[Records, Records]
"""The image and the annotation records of a file."""


@dataclass(frozen=True)
class CocoDataset:
    """A labelled pool: images by ascending id, their boxes by image, and the positions of their records in the file.

    Axes: I images, A annotations, C classes. ``class_index`` numbers the categories from 0 by ascending id, as
    Detectron2 does. Annotations are ordered by image, within an image as in the file. The records themselves stay in
    the file; :meth:`open` reads them again.

    Args:
        path: The file, as the caller named it.
        sha256: Digest of the file's bytes.
        findings: The findings of the validation.
        image_ids: (I,) int64, ascending and unique; assigned numbers where the file's ids are texts.
        file_names: I texts, relative to the image root.
        widths: (I,) int64, px.
        heights: (I,) int64, px.
        sequences: I names of recordings, None where absent.
        frame_index: (I,) int64, -1 where absent.
        category_ids: (C,) int64, ascending and unique.
        class_names: C unique texts.
        annotation_ids: (A,) int64, as in the file, where they may repeat; assigned numbers where absent.
        image_index: (A,) int64 in [0, I), ascending: the row of the annotation's image.
        class_index: (A,) int64 in [0, C).
        boxes: (A, 4) float64, xyxy in absolute pixels, each of positive size.
        areas: (A,) float64, the file's ``area`` or, where absent, that of the box, px².
        iscrowd: (A,) bool; False where absent.
        image_positions: (I,) int64, the position of each image's record in the file's list.
        annotation_positions: (A,) int64, likewise.
        patched: Field -> (A,) bool, the annotations with a repaired value that must be written to their record:
            ``id``, ``area``, ``iscrowd``, ``bbox``.
        other_top_level: Every key of the file with its value as text, in order; ``images`` and ``annotations`` with an
            empty one.
        text_ids: Assigned number -> the id in the file, for the images with text ids.
        spans: The begin and end of the image and the annotation records in the file's text, (n, 2) int64 each, by
            position.
    """

    path: Path
    sha256: str
    findings: tuple[Finding, ...]
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
    image_positions: np.ndarray
    annotation_positions: np.ndarray
    patched: Mapping[str, np.ndarray] = field(repr=False)
    other_top_level: Mapping[str, bytes] = field(repr=False)
    text_ids: Mapping[int, str] = field(repr=False)
    spans: tuple[np.ndarray, np.ndarray] = field(repr=False)

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
        """Return the rows of images, in the order given.

        Args:
            image_ids: (K,) integers, unique; K may be 0.

        Returns:
            (K,) int64 in [0, I).

        Raises:
            SelectionError: An id is not an image of this file, or is repeated.
        """
        ids = np.asarray(image_ids, dtype=np.int64)
        rows = np.searchsorted(self.image_ids, ids).clip(max=len(self) - 1)
        known = self.image_ids[rows] == ids
        if not known.all():
            raise SelectionError(
                f"image_ids: not images of {self.path} (got {_examples(ids[~known])}). "
                "Select from the annotation file that is subset."
            )
        if num_repeated := len(ids) - len(np.unique(ids)):
            raise SelectionError(f"image_ids: not unique (got {num_repeated} repeated).")
        return rows

    def original_id(self, row: int) -> int | str:
        """Return the id of an image in the file."""
        image_id = int(self.image_ids[row])
        return self.text_ids.get(image_id, image_id)

    def open(self) -> Opened:
        """Return the file's image and annotation records, by position.

        Raises:
            DatasetError: The file has changed since it was read.
        """
        source = open_source(self.path, sha256=self.sha256)
        if any(finding.code == "not_finite_number" for finding in self.findings):
            source, _ = source.with_null_for_not_finite()
        images, annotations = self.spans
        return Records("images", source, images), Records("annotations", source, annotations)

    def annotation_patch(self, row: int) -> dict[str, Any]:
        """Return the repaired fields of an annotation with their new values; usually none."""
        values = {
            "id": int(self.annotation_ids[row]),
            "bbox": xyxy_to_xywh(self.boxes[row : row + 1])[0].tolist(),
            "area": float(self.areas[row]),
            "iscrowd": int(self.iscrowd[row]),
        }
        return {name: values[name] for name, rows in self.patched.items() if rows[row]}


def read_coco(path: Path, policies: Mapping[str, str] = MappingProxyType({})) -> CocoDataset:
    """Read a COCO detection file, plain or gzip, into columns.

    A missing ``iscrowd`` becomes 0, a missing ``area`` that of the box, a missing annotation ``id`` a number above the
    highest one. A file without annotations gives A = 0.

    Args:
        path: The file.
        policies: Finding code -> policy (``error``, ``warn``, ``repair`` or ``note``), where it differs from the
            default in :data:`detcurate.coco.validation.findings.RULES`.

    Raises:
        DatasetError: The file cannot be read, is not JSON (with line and column), is not a COCO detection file, has
            no image or category, or has findings with the policy ``error``, which are all listed.
        ConfigError: A policy does not exist.

    Source:
        https://cocodataset.org/#format-data, "Data format", sections 0 and 1.
    """
    return open_coco(path, policies)[0]


def open_coco(path: Path, policies: Mapping[str, str] = MappingProxyType({})) -> tuple[CocoDataset, Opened]:
    """Read a file like :func:`read_coco` and also return its records, like :meth:`CocoDataset.open`."""
    dataset, opened = _read(path, policies)
    errors = [finding for finding in dataset.findings if finding.policy == "error"]
    if errors:
        raise DatasetError(describe_errors(errors, path))
    return dataset, opened


def inspect_coco(
    path: Path, policies: Mapping[str, str] = MappingProxyType({})
) -> tuple[CocoDataset, tuple[Finding, ...]]:
    """Read a file like :func:`read_coco`, but return findings with the policy ``error`` instead of raising them.

    The dataset then lacks the invalid records: it is for inspection, not for training.

    Raises:
        DatasetError: The file cannot be read, or has no usable image or category.
        ConfigError: A policy does not exist.
    """
    dataset, _ = _read(path, policies)
    return dataset, dataset.findings


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause Python's cycle collector: it would search hundreds of thousands of new records that form no cycle."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_paused_collector()
def _read(path: Path, policies: Mapping[str, str]) -> tuple[CocoDataset, Opened]:
    log = FindingLog(policies)
    source, top_level = _open(path, log)
    if source.has_byte_order_mark:
        log.add("byte_order_mark", "byte order mark at the begin of the file")
    source.release()
    image_records = find_records(source, "images", top_level)
    records, columns, read = find_annotations(source, top_level)
    category_records = find_records(source, "categories", top_level)
    categories, category_table, kept = _category_columns(path, category_records, log)
    images, image_table = _image_columns(path, image_records, log)
    columns = read_annotations(records, columns, read, image_table, category_table, log)
    owned = [columns]
    del columns, read  # check_annotations frees each column once it is sorted
    annotations, patched = check_annotations(
        records,
        owned.pop(),
        image_ids=images["image_ids"],
        sizes=np.column_stack((images["widths"], images["heights"])),
        category_ids=categories["category_ids"],
        log=log,
    )
    others = {key: b"" if key in ("images", "annotations") else bytes(raw) for key, raw in top_level.items()}
    if len(kept) < len(category_records):
        others["categories"] = b"[" + b", ".join(category_records[position] for position in kept) + b"]"
    dataset = CocoDataset(
        path=path,
        sha256=source.sha256,
        findings=log.findings(),
        **categories,
        **images,
        **annotations,
        patched=patched,
        other_top_level=others,
        text_ids={number: text for text, number in image_table.named.items()},
        spans=(image_records.spans, records.spans),
    )
    source.release()
    return dataset, (image_records, records)


def _open(path: Path, log: FindingLog) -> tuple[Source, dict[str, msgspec.Raw]]:
    source = open_source(path)
    try:
        return source, decode_top_level(source)
    except NotFiniteNumberError:
        if not log.repairs("not_finite_number"):
            raise
        source, count = source.with_null_for_not_finite()
        log.add("not_finite_number", f"{count:,} NaN or Infinity in the file", count)
        return source, decode_top_level(source)


def _category_columns(path: Path, records: Records, log: FindingLog) -> tuple[dict[str, Any], IdTable, list[int]]:
    """Return the columns by id, the table of ids, and the positions of the kept records."""
    positions, decoded = read_records(records, CategoryRecord, log)
    values = [record.id for record in decoded]
    table, ids = IdTable.of(values)
    report_texts("categories", "id", positions, values, log)
    rows = check_categories(path, ids, [record.name for record in decoded], log)
    columns = {"category_ids": ids[rows], "class_names": tuple(decoded[row].name for row in rows.tolist())}
    return columns, table, sorted(positions[rows].tolist())


def _image_columns(path: Path, records: Records, log: FindingLog) -> tuple[dict[str, Any], IdTable]:
    positions, decoded = read_records(records, ImageRecord, log)
    values = [record.id for record in decoded]
    table, ids = IdTable.of(values)
    report_texts("images", "id", positions, values, log)
    rows = check_images(path, positions, ids, [record.file_name for record in decoded], log)
    kept = [decoded[row] for row in rows.tolist()]
    frames = [-1 if record.frame_index is None else record.frame_index for record in kept]
    columns = {
        "image_ids": ids[rows],
        "file_names": tuple(record.file_name for record in kept),
        "widths": np.array([record.width for record in kept], np.int64),
        "heights": np.array([record.height for record in kept], np.int64),
        "sequences": tuple(None if record.sequence is None else str(record.sequence) for record in kept),
        "frame_index": np.array(frames, np.int64),
        "image_positions": positions[rows],
    }
    return columns, table


def _examples(values: Sequence[object] | np.ndarray) -> str:
    shown = ", ".join(str(value) for value in values[:3])
    return shown + (", …" if len(values) > 3 else "")


def image_labels(dataset: CocoDataset, image_ids: np.ndarray) -> Labels:
    """Return the boxes of images, image by image in the order given.

    Args:
        dataset: The annotation file.
        image_ids: (K,) integers, unique; K may be 0.

    Raises:
        SelectionError: An id is not an image of this file, or is repeated.
    """
    rows = dataset.subset_rows(image_ids)
    first = np.searchsorted(dataset.image_index, rows, side="left")
    counts = np.searchsorted(dataset.image_index, rows, side="right") - first
    begins = np.cumsum(counts) - counts
    annotations = np.arange(counts.sum()) + np.repeat(first - begins, counts)
    return Labels(
        image_ids=np.repeat(np.asarray(image_ids, np.int64), counts),
        annotation_ids=dataset.annotation_ids[annotations],
        boxes=dataset.boxes[annotations],
        class_index=dataset.class_index[annotations],
        iscrowd=dataset.iscrowd[annotations],
    )


_COLUMNS = ("id", "file_name", "width", "height", "sequence", "frame_index")
_SCALARS = (str, int, float, bool)

Value = str | int | float | bool | None


def image_metadata(dataset: CocoDataset, opened: Opened | None = None) -> dict[str, list[Value]]:
    """Return the fields of the image records without a column in :class:`CocoDataset`, such as weather.

    Nested objects are flattened with dots (``attributes.weather``); lists are skipped.

    Args:
        dataset: The pool.
        opened: The result of ``dataset.open()``, to avoid opening the file again.

    Returns:
        Name -> I values, aligned with ``image_ids``, None where an image has no such field; sorted by name.

    Raises:
        DatasetError: The file has changed since it was read.
    """
    images, _ = opened or dataset.open()
    row_of = np.full(len(images), -1, np.int64)
    row_of[dataset.image_positions] = np.arange(len(dataset))
    columns: dict[str, list[Value]] = {}
    decoder = msgspec.json.Decoder(list[Any])
    for start, stop, text in images.blocks():
        try:
            records = decoder.decode(text)
        except msgspec.ValidationError:  # a number beyond 64 bits
            records = [images.value(position) for position in range(start, stop)]
        for position, record in enumerate(records, start=start):
            row = int(row_of[position])
            if row < 0:
                continue
            for name, value in _scalars(record):
                if name not in columns:  # not setdefault, which would allocate a column for every value
                    columns[name] = [None] * len(dataset)
                columns[name][row] = value
    return dict(sorted(columns.items()))


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in record.items():
        if not prefix and key in _COLUMNS:
            continue
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}.")
        elif isinstance(value, _SCALARS):
            yield f"{prefix}{key}", value
