"""Merge subsets into one file and report every conflict."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import orjson

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.records import Records
from detcurate.errors import SelectionError
from detcurate.io import files
from detcurate.manifest.write import open_text

OnConflict = Literal["error", "first"]
ON_CONFLICT: tuple[OnConflict, ...] = ("error", "first")
_SHOWN = 3
_LARGEST_EXACT_FLOAT = 2**53


@dataclass
class Merge:
    """The images and annotations that a merge takes from each file.

    Args:
        datasets: The files, in the order given.
        rows: For each dataset, the rows of the images taken from it.
        conflicts: A sentence for each image that two files describe, label or number differently.
        renumbered: The number of annotations with a new id, because another file uses theirs.
    """

    datasets: Sequence[CocoDataset]
    rows: list[list[int]] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    renumbered: int = 0


def merge_manifests(
    datasets: Sequence[CocoDataset], output: Path, *, on_conflict: OnConflict = "error"
) -> dict[str, Any]:
    """Write the union of several sets of images as one COCO file, records byte for byte.

    An image that several files hold with the same record and the same annotations is taken once. An annotation gets a
    new id when an annotation of another image already has its id.

    Args:
        datasets: Two or more; the other top-level values are taken from the first.
        output: The file to write, compressed when its name ends in ``.gz``; ``<name>.lineage.json`` beside it lists
            its sources.
        on_conflict: The treatment of an image that two files describe or label differently, or that has two ids:
            ``error`` writes nothing; ``first`` keeps the version of the earlier file and lists the conflict in the
            lineage.

    Returns:
        The lineage: ``sources`` (``file_name``, ``sha256``, ``num_images``, ``taken``: the images taken from it),
        ``num_images``, ``num_boxes``, ``renumbered``, ``conflicts`` and the ``sha256`` of the file.

    Raises:
        SelectionError: The categories differ, there are conflicts and ``on_conflict`` is ``error``, or ``output`` is
            one of the files to merge.
    """
    if any(output.exists() and output.samefile(dataset.path) for dataset in datasets):
        raise SelectionError(f"output: one of the files to merge (got {output}). Name another file.")
    _require_same_categories(datasets)
    merge = _plan(datasets)
    if merge.conflicts and on_conflict == "error":
        more = f"; and {len(merge.conflicts) - _SHOWN} more" if len(merge.conflicts) > _SHOWN else ""
        raise SelectionError(
            f"on_conflict: the files to merge disagree (got {len(merge.conflicts)} conflicts: "
            f"{'; '.join(merge.conflicts[:_SHOWN])}{more}). Fix them, or pass --on-conflict first to keep the "
            "version of the first file."
        )
    description = output.with_name(f"{output.name.removesuffix('.gz').removesuffix('.json')}.lineage.json")
    description.unlink(missing_ok=True)  # it must not describe another merge
    with files.atomic_path(output) as temporary, open_text(temporary, compress=output.suffix == ".gz") as stream:
        for piece in _pieces(merge):
            stream.write(piece)
    try:
        lineage = _lineage(merge, output)
        files.write_json(description, lineage)
    except BaseException:
        output.unlink(missing_ok=True)
        raise
    return lineage


def _lineage(merge: Merge, output: Path) -> dict[str, Any]:
    parts = list(zip(merge.datasets, merge.rows, strict=True))
    return {
        "sources": [
            {"file_name": dataset.path.name, "sha256": dataset.sha256, "num_images": len(dataset), "taken": len(rows)}
            for dataset, rows in parts
        ],
        "num_images": sum(map(len, merge.rows)),
        "num_boxes": sum(int(dataset.boxes_per_image[rows].sum()) for dataset, rows in parts),
        "renumbered": merge.renumbered,
        "conflicts": merge.conflicts,
        "sha256": files.sha256_file(output),
    }


def _require_same_categories(datasets: Sequence[CocoDataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        expected, found = _categories(first), _categories(other)
        if found != expected:
            raise SelectionError(
                f"categories: {other.path} differs from {first.path} (got {found} and {expected}). Map one to the "
                "other first."
            )


def _categories(dataset: CocoDataset) -> dict[int | str, str]:
    """Return id -> name with the ids of the file, because the annotations are copied with them."""
    records: list[dict[str, Any]] = msgspec.json.decode(dataset.other_top_level["categories"])
    return {record["id"]: record["name"] for record in sorted(records, key=lambda record: str(record["id"]))}


def _plan(datasets: Sequence[CocoDataset]) -> Merge:
    merge = Merge(datasets)
    taken: dict[int | str, tuple[str, tuple[bytes, ...]]] = {}
    named: dict[str, tuple[str, int | str]] = {}  # the images of the earlier files
    for number, dataset in enumerate(datasets, start=1):
        label = f"file {number} ({dataset.path.name})"  # no folder: the lineage must not depend on the machine
        images, annotations = dataset.open()
        bounds = np.searchsorted(dataset.image_index, np.arange(len(dataset) + 1))
        rows = []
        for row in np.argsort(dataset.image_positions).tolist():
            key = dataset.original_id(row)
            positions = dataset.annotation_positions[bounds[row] : bounds[row + 1]].tolist()
            texts = (images[int(dataset.image_positions[row])], *sorted(annotations[at] for at in positions))
            name = dataset.file_names[row]
            if key in taken:
                other, other_texts = taken[key]
                if texts != other_texts:
                    kind = "described" if texts[0] != other_texts[0] else "labelled"
                    merge.conflicts.append(f"image_id {key} is {kind} differently in {other} and {label}")
            elif name in named:
                other, other_key = named[name]
                merge.conflicts.append(f"{name} is image_id {other_key} in {other} and {key} in {label}")
            else:
                taken[key] = (label, texts)
                rows.append(row)
        merge.rows.append(rows)
        named.update({dataset.file_names[row]: (label, dataset.original_id(row)) for row in rows})
    return merge


def _pieces(merge: Merge) -> Iterator[bytes]:
    separator = b"{"
    for key, value in merge.datasets[0].other_top_level.items():
        yield b"".join((separator, orjson.dumps(key), b": "))
        if key in ("images", "annotations"):
            texts = _images(merge) if key == "images" else _annotations(merge)
            yield b"[\n"
            between = b""
            for text in texts:
                yield between + text
                between = b",\n"
            yield b"\n]"
        else:
            yield value
        separator = b",\n"
    yield b"}\n"


def _images(merge: Merge) -> Iterator[bytes]:
    for dataset, rows in zip(merge.datasets, merge.rows, strict=True):
        images, _ = dataset.open()
        for row in rows:
            yield images[int(dataset.image_positions[row])]


def _annotations(merge: Merge) -> Iterator[bytes]:
    """Yield the annotations of the taken images, with a new id where another file already used theirs."""
    used: set[str] = set()
    merge.renumbered = 0
    free = _free_ids(merge.datasets)
    for dataset, rows in zip(merge.datasets, merge.rows, strict=True):
        _, annotations = dataset.open()
        is_taken = np.zeros(len(dataset), bool)
        is_taken[rows] = True
        kept = np.flatnonzero(is_taken[dataset.image_index])
        kept = kept[np.argsort(dataset.annotation_positions[kept])]
        ids = _original_ids(dataset, annotations, kept)
        for position, key in zip(dataset.annotation_positions[kept].tolist(), ids, strict=True):
            text = annotations[position]
            if key in used:
                merge.renumbered += 1
                record: dict[str, Any] = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
                text = msgspec.json.encode({**record, "id": next(free)})
            yield text
        used.update(key for key in ids if key is not None)


def _original_ids(dataset: CocoDataset, annotations: Records, rows: np.ndarray) -> list[str | None]:
    """Return the ids of some annotations in the file, as texts because 7 equals "7"; None where there is none."""
    if {"string_id", "missing_id"}.isdisjoint(finding.code for finding in dataset.findings):
        return [str(number) for number in dataset.annotation_ids[rows].tolist()]
    ids = (annotations.value(position).get("id") for position in dataset.annotation_positions[rows].tolist())
    return [None if value is None else str(value) for value in ids]


def _free_ids(datasets: Sequence[CocoDataset]) -> Iterator[int]:
    """Yield ids that no file uses: above all used ones, or the smallest ones if those would be too large."""
    used = np.unique(np.concatenate([dataset.annotation_ids for dataset in datasets]))
    highest = max(int(used[-1]), 0) if len(used) else 0
    if highest + sum(dataset.num_boxes for dataset in datasets) <= _LARGEST_EXACT_FLOAT:
        return itertools.count(highest + 1)
    taken = set(used.tolist())
    return (number for number in itertools.count(1) if number not in taken)
