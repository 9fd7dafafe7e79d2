"""Write a subset as a COCO file with its provenance."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import orjson
from numba import njit

from detcurate.coco.dataset import CocoDataset, Opened, image_metadata
from detcurate.coco.records import Records
from detcurate.errors import SelectionError
from detcurate.io import files

_BLOCK = 8_192  # records; their text then stays in the processor's cache while it is digested and written


def kept_rows(dataset: CocoDataset, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of some images and those of their annotations, both ascending.

    Raises:
        SelectionError: There is no id, one is not an image of the source, or one is repeated.
    """
    if not len(image_ids):
        raise SelectionError(f"image_ids: no image of {dataset.path} is selected. Raise the budget.")
    kept = np.zeros(len(dataset), bool)
    kept[dataset.subset_rows(image_ids)] = True
    return np.flatnonzero(kept), np.flatnonzero(kept[dataset.image_index])


def subset_pieces(dataset: CocoDataset, image_ids: np.ndarray, opened: Opened | None = None) -> Iterator[Any]:
    """Yield the text of a subset in pieces, as bytes or as (n,) uint8.

    Args:
        dataset: The source.
        image_ids: (K,) integers, unique; at least one.
        opened: The result of ``dataset.open()``, to save opening the file again.

    Raises:
        SelectionError: There is no id, one is not an image of the source, or one is repeated.
        DatasetError: The source file has changed since it was read.
    """
    rows = dict(zip(("images", "annotations"), kept_rows(dataset, image_ids), strict=True))
    positions = {"images": dataset.image_positions, "annotations": dataset.annotation_positions}
    records = dict(zip(("images", "annotations"), opened or dataset.open(), strict=True))
    separator = b"{"
    for key, value in dataset.other_top_level.items():
        yield b"".join((separator, orjson.dumps(key), b": ", b"" if key in rows else value))
        if key in rows:
            kept = np.zeros(len(records[key]), bool)
            kept[positions[key][rows[key]]] = True
            yield from _list_pieces(dataset, records[key], np.flatnonzero(kept), _patches(dataset, key, rows[key]))
        separator = b",\n"
    yield b"}\n"


def _patches(dataset: CocoDataset, key: str, rows: np.ndarray) -> dict[int, int]:
    """Return position -> row of the records with a repaired field."""
    if key != "annotations" or not dataset.patched:
        return {}
    rows = rows[np.any([mask[rows] for mask in dataset.patched.values()], axis=0)]
    return dict(zip(dataset.annotation_positions[rows].tolist(), rows.tolist(), strict=True))


def _list_pieces(
    dataset: CocoDataset, records: Records, positions: np.ndarray, patched: Mapping[int, int]
) -> Iterator[Any]:
    # One record a line, so that a diff of two subsets shows images.
    text = np.frombuffer(records.source.content, np.uint8)
    separator = b"[\n"
    for start in range(0, len(positions), _BLOCK):
        block = positions[start : start + _BLOCK]
        yield separator
        if patched.keys().isdisjoint(block.tolist() if patched else ()):
            lengths = records.spans[block, 1] - records.spans[block, 0]
            joined = np.empty(lengths.sum() + 2 * len(block) - 2, np.uint8)
            join_records(text, records.spans, block, joined)
            yield joined
        else:
            yield b",\n".join(_patched(dataset, records, position, patched) for position in block.tolist())
        separator = b",\n"
        records.source.release()
    yield b"\n]" if len(positions) else b"[]"


def _patched(dataset: CocoDataset, records: Records, position: int, patched: Mapping[int, int]) -> bytes:
    """Return a record with its repaired fields replaced; the other fields and the order of the keys stay."""
    if position not in patched:
        return records[position]
    record: dict[str, Any] = msgspec.json.decode(records[position], type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**record, **dataset.annotation_patch(patched[position])})


@njit(cache=True)
def join_records(text, spans, positions, joined):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Copy records, separated by a comma and a line break.

    Args:
        text: (n,) uint8.
        spans: (R, 2) int64, the begin and end of each record.
        positions: (K,) int64, the records, K ≥ 1.
        joined: (sum of their lengths + 2 (K - 1),) uint8, overwritten.
    """
    at = 0
    for k in range(len(positions)):
        if k > 0:
            joined[at], joined[at + 1] = 44, 10
            at += 2
        start, length = spans[positions[k], 0], spans[positions[k], 1] - spans[positions[k], 0]
        # Unsigned indices need no check for negative ones, so that many bytes are copied at once.
        source, target = np.uint64(start), np.uint64(at)
        for i in range(np.uint64(length)):
            joined[target + i] = text[source + i]
        at += length


SUBSET_FILE = "subset.json"
_MEMBER = ("run", "iteration", "kind", "sha256", "results")
PROVENANCE_FILE = "provenance.json"
IMAGES_FILE = "images.txt"

# COCO's object sizes by area in px²: each starts at its edge.
BOX_SIZE_EDGES = {"small": 0.0, "medium": 32.0**2, "large": 96.0**2}
_MOST_VALUES = 64  # a metadata field with more values has no histogram


def subset_bytes(dataset: CocoDataset, image_ids: np.ndarray) -> bytes:
    """Return the COCO file of some images: their records byte for byte, in the order of the source file.

    All other top-level values (``info``, ``licenses``, ``categories`` and any more) are copied unchanged; images
    without annotations stay. Only repaired fields are rewritten. Equal sets of ``image_ids`` give equal bytes in any
    order.

    Args:
        dataset: The source.
        image_ids: (K,) integers, unique; at least one.

    Raises:
        SelectionError: There is no id, one is not an image of the source, or one is repeated.
        DatasetError: The source file has changed since it was read.
    """
    return b"".join(subset_pieces(dataset, image_ids))


def subset_digest(dataset: CocoDataset, image_ids: np.ndarray, opened: Opened | None = None) -> str:
    """Return the SHA-256 of :func:`subset_bytes` without holding them in memory."""
    digest = hashlib.sha256()
    for piece in subset_pieces(dataset, image_ids, opened):
        digest.update(piece)
    return digest.hexdigest()


def build_provenance(
    *,
    dataset: CocoDataset,
    image_ids: np.ndarray,
    strategy: str,
    seed: int,
    requested_budget: Mapping[str, float],
    config_sha256: str,
    members: Sequence[Mapping[str, Any]],
    scores_sha256: str,
    versions: Mapping[str, str],
    seconds_per_image: float = 0.0,
    seconds_per_box: float = 0.0,
) -> dict[str, Any]:
    """Return the provenance of a subset, which allows reproducing and verifying it.

    It holds neither a time nor a folder, so that equal input gives equal bytes on every machine.

    Args:
        dataset: The source.
        image_ids: (K,) integers, the selected images; at least one.
        strategy: The name of the selection strategy.
        seed: The seed of the selection.
        requested_budget: The budget of the config, such as ``{"fraction": 0.5}``.
        config_sha256: Digest of the settings.
        members: One mapping a member, with ``run``, ``iteration``, ``sha256`` and, for a member imported as
            predictions, ``results``, the name of that file; other keys are ignored.
        scores_sha256: Digest of the image scores.
        versions: Name -> version of the software.
        seconds_per_image: The annotation time of an image without its boxes, s.
        seconds_per_box: The annotation time of a box, s.

    Returns:
        A JSON-able dict with ``source``, ``findings``, ``subset``, ``strategy``, ``seed``, ``budget`` (requested;
        spent: images, boxes, cost in seconds), ``histograms`` (counts before and after, of boxes by class and by size,
        of images by each metadata field), ``ensemble``, ``config_sha256``, ``scores_sha256`` and ``versions``.

    Raises:
        SelectionError: There is no id, one is not an image of the source, or one is repeated.
    """
    opened = dataset.open()
    images, annotations = kept_rows(dataset, image_ids)
    before = {"num_images": len(dataset), "num_boxes": dataset.num_boxes}
    after = {"num_images": len(images), "num_boxes": len(annotations)}
    cost = len(images) * seconds_per_image + len(annotations) * seconds_per_box
    return {
        "source": {"file_name": dataset.path.name, "sha256": dataset.sha256, **before},
        "findings": [
            {"code": finding.code, "policy": finding.policy, "count": finding.count} for finding in dataset.findings
        ],
        "subset": {"file_name": SUBSET_FILE, "sha256": subset_digest(dataset, image_ids, opened), **after},
        "strategy": strategy,
        "seed": seed,
        "budget": {
            "requested": dict(requested_budget),
            "spent": {"images": len(images), "boxes": len(annotations), "cost_seconds": cost},
            "seconds_per_image": seconds_per_image,
            "seconds_per_box": seconds_per_box,
        },
        "histograms": histograms(dataset, images, annotations, opened),
        "ensemble": [{key: member[key] for key in _MEMBER if key in member} for member in members],
        "config_sha256": config_sha256,
        "scores_sha256": scores_sha256,
        "versions": dict(versions),
    }


def write_subset(path: Path, dataset: CocoDataset, image_ids: np.ndarray) -> str:
    """Write a subset atomically, compressed when the name ends in ``.gz``; return the digest of its JSON text."""
    digest = hashlib.sha256()
    with files.atomic_path(path) as temporary, open_text(temporary, compress=path.suffix == ".gz") as stream:
        for piece in subset_pieces(dataset, image_ids):
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


@contextmanager
def open_text(path: Path, *, compress: bool) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Open a file for writing, compressed or not; equal texts give equal bytes."""
    with path.open("wb") as stream:
        if not compress:
            yield stream
            return
        with gzip.GzipFile("", "wb", 6, stream, mtime=0) as zipped:  # its header must not hold a name or a time
            yield zipped


def write_manifest(
    directory: Path,
    dataset: CocoDataset,
    image_ids: np.ndarray,
    provenance: Mapping[str, Any],
    *,
    compress: bool = False,
) -> list[Path]:
    """Write ``subset.json`` and ``images.txt``, then ``provenance.json``, which marks the manifest as complete.

    On failure none of the files remains, including those of an earlier manifest.

    Args:
        directory: The folder; created if absent.
        dataset: The source.
        image_ids: (K,) integers, the selected images.
        provenance: From :func:`build_provenance`.
        compress: Whether to write ``subset.json.gz`` instead.

    Returns:
        The paths of the subset, the list of images and the provenance.

    Raises:
        SelectionError: ``provenance`` describes another subset, or ``image_ids`` cannot be written.
        OSError: The files cannot be written.
    """
    subset = directory / (f"{SUBSET_FILE}.gz" if compress else SUBSET_FILE)
    images, description = directory / IMAGES_FILE, directory / PROVENANCE_FILE
    old = [directory / name for name in (PROVENANCE_FILE, IMAGES_FILE, SUBSET_FILE, f"{SUBSET_FILE}.gz")]
    for path in old:  # an old provenance must not stand beside a new subset
        path.unlink(missing_ok=True)
    try:
        digest = write_subset(subset, dataset, image_ids)
        if provenance["subset"]["sha256"] != digest:
            raise SelectionError(
                f"provenance: describes another subset than the one written to {directory} (got sha256 "
                f"{provenance['subset']['sha256']} instead of {digest}). Build it from the same images."
            )
        files.write_bytes(images, images_text(dataset, kept_rows(dataset, image_ids)[0]))
        files.write_json(description, files.add_checksum(provenance))
    except BaseException:
        for path in old:
            path.unlink(missing_ok=True)
        raise
    return [subset, images, description]


def images_text(dataset: CocoDataset, images: np.ndarray) -> bytes:
    """Return the text of ``images.txt``: the file names of some rows in the order of the file, one a line.

    A line break in a name is escaped, so that each image has one line.
    """
    rows = images[np.argsort(dataset.image_positions[images])]
    names = (dataset.file_names[row].replace("\r", "\\r").replace("\n", "\\n") for row in rows.tolist())
    return "".join(f"{name}\n" for name in names).encode()


def histograms(
    dataset: CocoDataset, images: np.ndarray, annotations: np.ndarray, opened: Opened | None = None
) -> dict[str, Any]:
    """Count the source and a subset of it: boxes by class and size, images by sequence and other metadata.

    Args:
        dataset: The source.
        images: (K,) int64, the rows of the selected images.
        annotations: (M,) int64, the rows of their annotations.
        opened: The result of ``dataset.open()``, to save opening the file again.

    Returns:
        Field -> value -> ``before`` and ``after``. A metadata field with more than 64 values is left out, except
        ``sequence``; a field with the name of another histogram gets the prefix ``image.``.
    """
    num_classes, sizes = len(dataset.class_names), list(BOX_SIZE_EDGES)
    size = np.searchsorted(list(BOX_SIZE_EDGES.values()), dataset.areas, side="right") - 1
    counted = {
        "classes": _before_after(dataset.class_names, dataset.class_index, annotations, num_classes),
        "box_size": _before_after(sizes, size, annotations, len(sizes)),
    }
    for name, column in {"sequence": dataset.sequences, **image_metadata(dataset, opened)}.items():
        before = Counter(str(value) for value in column if value is not None)
        if before and (name == "sequence" or len(before) <= _MOST_VALUES):
            after = Counter(str(column[row]) for row in images.tolist() if column[row] is not None)
            field = f"image.{name}" if name in counted else name
            counted[field] = {value: {"before": before[value], "after": after[value]} for value in sorted(before)}
    return counted


def _before_after(
    names: Sequence[str], values: np.ndarray, rows: np.ndarray, num_bins: int
) -> dict[str, dict[str, int]]:
    before = np.bincount(values, minlength=num_bins).tolist()
    after = np.bincount(values[rows], minlength=num_bins).tolist()
    return {name: {"before": b, "after": a} for name, b, a in zip(names, before, after, strict=True)}
