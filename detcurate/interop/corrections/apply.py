"""Write a new pool file with corrected labels; all other records are copied byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.records import Records
from detcurate.errors import DatasetError
from detcurate.interop.corrections.corrected_labels import CorrectedFile, ImageLabels, labels_of_pool
from detcurate.interop.export.relabel_queue import annotation_id_of, category_ids_of, free_ids
from detcurate.io.files import atomic_path, sha256_file, write_json
from detcurate.manifest.write import join_records, open_text
from detcurate.structures.boxes import box_iou, xyxy_to_xywh
from detcurate.version import __version__

SAME_PX = 0.05
"""Corners within this distance are equal: CVAT rounds to 0.01 px, other tools to millionths of the image's size."""

_SAME_OBJECT = 0.5


@dataclass(frozen=True)
class Matching:
    """The correspondence between an image's labels in the pool and in the correction.

    Args:
        unchanged: Rows of the pool's labels that the correction repeats.
        changed: Pairs of a row of the pool's labels and a row of the corrected ones.
        added: Rows of the corrected labels without a counterpart.
        removed: Rows of the pool's labels without a counterpart.
    """

    unchanged: tuple[int, ...]
    changed: tuple[tuple[int, int], ...]
    added: tuple[int, ...]
    removed: tuple[int, ...]


def match_labels(
    boxes: np.ndarray,
    class_index: np.ndarray,
    keys: Sequence[str],
    corrected_boxes: np.ndarray,
    corrected_class_index: np.ndarray,
    corrected_keys: Sequence[str],
) -> Matching:
    """Match corrected labels to those of the pool, each label at most once, in three rounds.

    First equal box and class, equal ids before others; then equal ids with any overlap (without one, a tool that
    renumbers would turn one object into another); then the greatest IoU of at least 0.5.

    Args:
        boxes: (n, 4) float64, xyxy px, of the pool.
        class_index: (n,) int64.
        keys: n texts, the ids.
        corrected_boxes: (m, 4) float64.
        corrected_class_index: (m,) int64.
        corrected_keys: m texts; empty where the id is unknown.

    Returns:
        Every row of both sides exactly once.

    Example:
        >>> before, after = np.array([[0, 0, 9, 9.0]]), np.array([[0, 0, 9, 8.0]])
        >>> match_labels(before, np.array([1]), ["7"], after, np.array([1]), [""])
        Matching(unchanged=(), changed=((0, 0),), added=(), removed=())
    """
    shape = (len(boxes), len(corrected_boxes))
    apart = np.abs(boxes[:, None] - corrected_boxes[None]).max(axis=2, initial=0)
    same_class = class_index[:, None] == corrected_class_index[None]
    same_key = np.array([[key == other != "" for other in corrected_keys] for key in keys], bool).reshape(shape)
    iou = box_iou(boxes, corrected_boxes)
    rounds = (
        np.where((apart <= SAME_PX) & same_class, 1.0 + same_key, 0.0),
        np.where(same_key, iou, 0.0),
        np.where(iou >= _SAME_OBJECT, iou, 0.0),
    )
    partner = np.full(shape[0], -1)
    is_taken = np.zeros(shape[1], bool)
    unchanged: tuple[int, ...] = ()
    for number, weight in enumerate(rounds):
        _take_greatest(weight, partner, is_taken)
        if number == 0:
            unchanged = tuple(np.flatnonzero(partner >= 0).tolist())
    changed = tuple((row, int(partner[row])) for row in np.flatnonzero(partner >= 0).tolist() if row not in unchanged)
    return Matching(
        unchanged=unchanged,
        changed=changed,
        added=tuple(np.flatnonzero(~is_taken).tolist()),
        removed=tuple(np.flatnonzero(partner < 0).tolist()),
    )


def _take_greatest(weight: np.ndarray, partner: np.ndarray, is_taken: np.ndarray) -> None:
    """Pair free rows and columns in place, the greatest weight first, ties by row; weight 0 makes no pair."""
    rows, columns = np.nonzero(weight)
    for at in np.argsort(-weight[rows, columns], kind="stable").tolist():
        row, column = rows[at], columns[at]
        if partner[row] < 0 and not is_taken[column]:
            partner[row], is_taken[column] = column, True


LINEAGE = "detcurate_relabel"
"""The key of ``info`` that lists the corrections applied to a pool, the latest last."""

_BLOCK = 8_192  # records


@dataclass
class Changes:
    """The changes to the pool's annotations.

    Args:
        rewritten: Position in the file -> the new record.
        removed: The positions of the removed annotations in the file.
        added: The records of the new annotations.
        images: One mapping a corrected image: ``image_id``, ``file_name``, and the number of its boxes that are
            ``unchanged``, ``changed``, ``added`` and ``removed``.
    """

    rewritten: dict[int, bytes] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    added: list[bytes] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)

    def total(self, name: str) -> int:
        """Return one count over all corrected images."""
        return sum(image[name] for image in self.images)


def apply_corrections(pool: CocoDataset, files: Sequence[CorrectedFile], output: Path) -> dict[str, Any]:
    """Write a new pool file with the corrected labels, and ``<name>.lineage.json`` beside it.

    The labels of a corrected image are replaced by those of the correction; its crowd regions stay. All other records
    are copied byte for byte in their order; new annotations come last, with new ids. A changed box loses its
    segmentation.

    Args:
        pool: The pool, which is not modified.
        files: One or more corrections.
        output: A new file, compressed when its name ends in ``.gz``.

    Returns:
        The lineage in ``info``, with the ``sha256`` of the output and a row a corrected image.

    Raises:
        DatasetError: The output exists, or the corrections do not fit the pool; see
            :func:`detcurate.interop.corrections.corrected_labels.labels_of_pool`. Nothing is written then.
    """
    description = output.with_name(f"{output.name.removesuffix('.gz').removesuffix('.json')}.lineage.json")
    for path in (output, description):
        if path.exists():
            raise DatasetError(f"output: exists (got {path}). Name a new file.")
    changes = find_changes(pool, labels_of_pool(pool, files))
    entry = _lineage(pool, files, changes)
    try:
        with atomic_path(output) as temporary, open_text(temporary, compress=output.suffix == ".gz") as stream:
            for piece in _pieces(pool, changes, entry):
                stream.write(piece)
        lineage = {**entry, "output": {"file_name": output.name, "sha256": sha256_file(output)}}
        lineage["corrected_images"] = changes.images
        write_json(description, lineage)
    except BaseException:
        output.unlink(missing_ok=True)
        raise
    return lineage


def find_changes(pool: CocoDataset, corrected: Sequence[ImageLabels]) -> Changes:
    """Compare corrected images with the pool."""
    _, annotations = pool.open()
    changes, categories = Changes(), category_ids_of(pool)
    new: list[dict[str, Any]] = []
    for labels in corrected:
        first, stop = np.searchsorted(pool.image_index, (labels.row, labels.row + 1))
        rows = first + np.flatnonzero(~pool.iscrowd[first:stop])
        size = np.tile((pool.widths[labels.row], pool.heights[labels.row]), 2)
        before = pool.boxes[rows].clip(0, size)  # as it was exported
        keys = [annotation_id_of(pool, annotations, row) for row in rows.tolist()]
        texts = ["" if key is None else str(key) for key in keys]
        found = match_labels(before, pool.class_index[rows], texts, labels.boxes, labels.class_index, labels.keys)
        for at, other in found.changed:
            row = int(rows[at])
            box = labels.boxes[other] if np.abs(before[at] - labels.boxes[other]).max() > SAME_PX else None
            category = categories[labels.class_index[other]]
            position = int(pool.annotation_positions[row])
            patch = pool.annotation_patch(row)
            changes.rewritten[position] = _changed(annotations[position], patch, box, category)
        changes.removed.update(pool.annotation_positions[rows[list(found.removed)]].tolist())
        new += [
            _new_record(pool.original_id(labels.row), categories[labels.class_index[at]], labels.boxes[at])
            for at in found.added
        ]
        changes.images.append(_counted(pool, labels.row, found))
    ids = free_ids(pool, len(new))
    changes.added = [orjson.dumps({"id": key, **record}) for key, record in zip(ids, new, strict=True)]
    return changes


def _counted(pool: CocoDataset, row: int, found: Matching) -> dict[str, Any]:
    counts = {name: len(getattr(found, name)) for name in ("unchanged", "changed", "added", "removed")}
    return {"image_id": pool.original_id(row), "file_name": pool.file_names[row], **counts}


def _changed(text: bytes, patch: Mapping[str, Any], box: np.ndarray | None, category: int | str) -> bytes:
    record: dict[str, Any] = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    record.update(patch)
    record["category_id"] = category
    if box is not None:
        record.pop("segmentation", None)  # it outlines the old box
        record |= _box_fields(box)
    return msgspec.json.encode(record)


def _new_record(image_id: int | str, category: int | str, box: np.ndarray) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category, **_box_fields(box), "iscrowd": 0}


def _box_fields(box: np.ndarray) -> dict[str, Any]:
    x, y, width, height = (round(side, 4) for side in xyxy_to_xywh(box[None])[0].tolist())
    return {"bbox": [x, y, width, height], "area": round(width * height, 4)}


def _lineage(pool: CocoDataset, files: Sequence[CorrectedFile], changes: Changes) -> dict[str, Any]:
    names = ("unchanged", "changed", "added", "removed")
    num_changed = sum(any(image[name] for name in names[1:]) for image in changes.images)
    skipped: dict[str, int] = {}
    for file in files:
        for name, count in file.skipped.items():
            skipped[name] = skipped.get(name, 0) + count
    return {
        "detcurate": __version__,
        "pool": {"file_name": pool.path.name, "sha256": pool.sha256},
        "corrections": [
            {"file_name": file.path.name, "format": file.format, "sha256": file.sha256, "num_images": len(file.images)}
            for file in files
        ],
        "images": {
            "changed": num_changed,
            "confirmed": len(changes.images) - num_changed,
            "not_reviewed": len(pool) - len(changes.images),
        },
        "boxes": {
            **{name: changes.total(name) for name in names},
            "not_reviewed": pool.num_boxes - sum(changes.total(name) for name in ("unchanged", "changed", "removed")),
        },
        "skipped": {name: count for name, count in sorted(skipped.items()) if count},
    }


def _pieces(pool: CocoDataset, changes: Changes, entry: Mapping[str, Any]) -> Iterator[Any]:
    images, annotations = pool.open()
    top_level = {**pool.other_top_level, "info": _info(pool.other_top_level.get("info"), entry)}
    separator = b"{"
    for key, value in top_level.items():
        yield b"".join((separator, orjson.dumps(key), b": "))
        if key == "images":
            yield from _listed(images, np.sort(pool.image_positions), {}, [])
        elif key == "annotations":
            kept = np.sort(pool.annotation_positions)
            kept = kept[~np.isin(kept, list(changes.removed))]
            yield from _listed(annotations, kept, {**_repaired(pool, annotations), **changes.rewritten}, changes.added)
        else:
            yield value
        separator = b",\n"
    yield b"}\n"


def _info(text: bytes | None, entry: Mapping[str, Any]) -> bytes:
    """Return ``info`` with one more entry of lineage; an ``info`` that is not an object is kept inside a new one."""
    found: Any = None if text is None else orjson.loads(text)
    info = found if isinstance(found, dict) else {} if found is None else {"info": found}
    earlier = info.get(LINEAGE)
    return orjson.dumps({**info, LINEAGE: [*(earlier if isinstance(earlier, list) else []), entry]})


def _repaired(pool: CocoDataset, annotations: Records) -> dict[int, bytes]:
    """Return position -> the record, for the annotations that were repaired when the pool was read."""
    if not pool.patched:
        return {}
    rows = np.flatnonzero(np.any(list(pool.patched.values()), axis=0)).tolist()
    texts = {}
    for row in rows:
        position = int(pool.annotation_positions[row])
        record: dict[str, Any] = msgspec.json.decode(annotations[position], type=dict[str, msgspec.Raw])
        texts[position] = msgspec.json.encode({**record, **pool.annotation_patch(row)})
    return texts


def _listed(
    records: Records, positions: np.ndarray, rewritten: Mapping[int, bytes], added: Sequence[bytes]
) -> Iterator[Any]:
    """Yield a list of records in pieces, one record a line, unchanged ones copied."""
    text = np.frombuffer(records.source.content, np.uint8)
    separator = b"[\n"
    for start in range(0, len(positions), _BLOCK):
        block = positions[start : start + _BLOCK]
        yield separator
        if rewritten.keys().isdisjoint(block.tolist() if rewritten else ()):
            joined = np.empty((records.spans[block, 1] - records.spans[block, 0]).sum() + 2 * len(block) - 2, np.uint8)
            join_records(text, records.spans, block, joined)
            yield joined
        else:
            yield b",\n".join(rewritten.get(position) or records[position] for position in block.tolist())
        separator = b",\n"
        records.source.release()
    for record in added:
        yield separator + record
        separator = b",\n"
    yield b"[]" if separator == b"[\n" else b"\n]"
