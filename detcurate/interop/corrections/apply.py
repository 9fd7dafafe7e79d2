"""A new pool from the old one and corrected labels: what nobody touched is copied word for word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.text import Records
from detcurate.errors import DatasetError
from detcurate.interop.corrections.corrected_labels import CorrectedFile, ImageLabels, labels_of_pool
from detcurate.interop.export.relabel_queue import annotation_id_of, category_ids_of, free_ids
from detcurate.io.files import atomic_path, sha256_file, write_json
from detcurate.manifest.write import join_records, open_text
from detcurate.structures.boxes import box_iou, xyxy_to_xywh
from detcurate.version import __version__

SAME_PX = 0.05
"""Boxes whose corners differ by less are one: CVAT rounds to hundredths of a pixel, others to millionths of a share."""

_SAME_OBJECT = 0.5


@dataclass(frozen=True)
class Matching:
    """What became of one image's labels.

    Args:
        unchanged: Rows of the pool's labels that are as they were.
        changed: Pairs of a row of the pool's labels and one of the corrected ones.
        added: Rows of the corrected labels.
        removed: Rows of the pool's labels.
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
    """Find the label that each corrected one was, in three rounds, each label once.

    First equal box and class, the same id before others; then the same id with any overlap (tools that number anew
    would else change one object into another); then the greatest IoU of at least 0.5.

    Args:
        boxes: (n, 4) float64, xyxy px, of the pool.
        class_index: (n,) int64.
        keys: n texts, their ids.
        corrected_boxes: (m, 4) float64.
        corrected_class_index: (m,) int64.
        corrected_keys: m texts; an empty one is of no label.

    Returns:
        Every row once. No label gives only added ones, no corrected one only removed ones.

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
    """Pair rows and columns that are free, the greatest weight first, ties by row; 0 is no pair. In place."""
    rows, columns = np.nonzero(weight)
    for at in np.argsort(-weight[rows, columns], kind="stable").tolist():
        row, column = rows[at], columns[at]
        if partner[row] < 0 and not is_taken[column]:
            partner[row], is_taken[column] = column, True


LINEAGE = "detcurate_relabel"
"""The key of ``info`` under which a pool says what was applied to it, the latest last."""

_BLOCK = 8_192  # records


@dataclass
class Changes:
    """What becomes of the pool's annotations.

    Args:
        rewritten: Position in the file -> the new text.
        removed: Positions in the file.
        added: The texts of new annotations.
        images: One mapping a corrected image: ``image_id``, ``file_name``, and how many of its boxes were
            ``unchanged``, ``changed``, ``added``, ``removed``.
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
    stay word for word, in their order; new annotations come last, with new ids. A changed box loses its segmentation.

    Args:
        pool: The pool; it is not written to.
        files: One or more corrections.
        output: A new file, compressed when its name ends in ``.gz``.

    Returns:
        The lineage: that in ``info``, with the ``sha256`` of the output and a row a corrected image.

    Raises:
        DatasetError: The output exists, or the corrections do not fit the pool; see
            :func:`detcurate.interop.corrections.corrected_labels.labels_of_pool`. Nothing is written then.
    """
    description = output.with_name(f"{output.name.removesuffix('.gz').removesuffix('.json')}.lineage.json")
    for path in (output, description):
        if path.exists():
            raise DatasetError(f"the output must be a new file, got one that exists ({path}); name another")
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
        before = pool.boxes[rows].clip(0, size)  # as it was handed over
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
        record.pop("segmentation", None)  # it is that of the old box
        record |= _box_fields(box)
    return msgspec.json.encode(record)


def _new_record(image_id: int | str, category: int | str, box: np.ndarray) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category, **_box_fields(box), "iscrowd": 0}


def _box_fields(box: np.ndarray) -> dict[str, Any]:
    x, y, width, height = (round(side, 4) for side in xyxy_to_xywh(box[None])[0].tolist())
    return {"bbox": [x, y, width, height], "area": round(width * height, 4)}


def _lineage(pool: CocoDataset, files: Sequence[CorrectedFile], changes: Changes) -> dict[str, Any]:
    names = ("unchanged", "changed", "added", "removed")
    touched = sum(any(image[name] for name in names[1:]) for image in changes.images)
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
            "changed": touched,
            "confirmed": len(changes.images) - touched,
            "not_looked_at": len(pool) - len(changes.images),
        },
        "boxes": {
            **{name: changes.total(name) for name in names},
            "not_looked_at": pool.num_boxes - sum(changes.total(name) for name in ("unchanged", "changed", "removed")),
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
    """Return ``info`` with one more entry of lineage; an ``info`` that is no object is kept inside the new one."""
    found: Any = None if text is None else orjson.loads(text)
    info = found if isinstance(found, dict) else {} if found is None else {"info": found}
    earlier = info.get(LINEAGE)
    return orjson.dumps({**info, LINEAGE: [*(earlier if isinstance(earlier, list) else []), entry]})


def _repaired(pool: CocoDataset, annotations: Records) -> dict[int, bytes]:
    """Return the records that reading the pool has repaired, by position."""
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
    """Yield a list of records, one a line, in pieces: most of them copied as they stand."""
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
